"""The terminal that a person sits at: its size, its raw mode, and how both come back."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

from desk.errors import DeskError


class NotATerminal(DeskError):
    """A terminal is asked for where standard input is none."""


class Size(NamedTuple):
    rows: int
    columns: int


def size() -> Size | None:
    """Return the terminal's size; ``None`` where standard output is none."""
    for descriptor in (1, 0, 2):
        try:
            columns, rows = os.get_terminal_size(descriptor)
        except OSError:
            continue
        if rows > 0 and columns > 0:
            return Size(rows, columns)
    return None


def stdin_is_terminal() -> bool:
    """Whether standard input is open and a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def check_input(*, tty: bool, attach_stdin: bool) -> None:
    """Raise what Docker says where a terminal is asked for and standard input is none."""
    if tty and attach_stdin and not stdin_is_terminal():
        raise NotATerminal(
            "the input device is not a TTY",
            hint="Leave -t out when input comes from a pipe or a file.",
        )


@contextlib.contextmanager
def raw() -> Iterator[None]:
    """Pass every key on as it is typed; the terminal is restored whatever happens. Does nothing
    where standard input is no terminal."""
    if not stdin_is_terminal():
        yield
    elif sys.platform == "win32":
        from desk.cli import windows_console

        with windows_console.raw():
            yield
    else:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        try:
            tty.setraw(descriptor, termios.TCSANOW)
            yield
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def read_input() -> bytes:
    """Return what was typed or piped in, ``b""`` at its end."""
    return os.read(0, 32 * 1024)
