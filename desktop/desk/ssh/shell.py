"""An interactive shell in the machine, for computers without an OpenSSH client."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from desk.ssh.session import Session
from desk.ssh.stream import ChannelStream

_READ_BYTES = 1 << 16


def interact(session: Session, command: str = "") -> int:
    """Run ``command``, or the login shell, on our terminal; return its exit code.

    Keys go to the machine as they are typed, control keys included; the window's size follows
    ours. Without a terminal on standard input and output, only bytes are copied. Raises
    ``SshError`` where the machine does not start it. 255 means a lost connection, as with ``ssh``.
    """
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        size = os.get_terminal_size(sys.stdout.fileno())
        stream = session.open_terminal(
            command,
            term=os.environ.get("TERM", "vt100"),
            columns=size.columns,
            rows=size.lines,
        )
    else:
        stream = session.open_exec(command or "exec ${SHELL:-/bin/sh}")
    with contextlib.ExitStack() as undo:
        undo.callback(stream.close)
        if terminal:
            undo.enter_context(_raw_terminal())
            undo.enter_context(_following_size(stream))
        threading.Thread(target=_type, args=(stream,), name="keys", daemon=True).start()
        errors = threading.Thread(target=_copy_errors, args=(stream,), daemon=True)
        errors.start()
        with contextlib.suppress(OSError):  # a lost connection ends the output; the code tells
            while data := stream.recv(_READ_BYTES):
                _write(sys.stdout.fileno(), data)
        errors.join()
        code = stream.wait_exit_code()
    return code if code >= 0 else 255


def _type(stream: ChannelStream) -> None:
    # Reading the descriptor itself: a buffered reader would hold keys back.
    with contextlib.suppress(OSError):
        while data := os.read(sys.stdin.fileno(), _READ_BYTES):
            stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)


def _copy_errors(stream: ChannelStream) -> None:
    for data in stream.iter_stderr():
        _write(sys.stderr.fileno(), data)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Hand every key on untouched until the context is left."""
    restore = _make_raw_windows() if sys.platform == "win32" else _make_raw()
    try:
        yield
    finally:
        restore()


def _make_raw() -> Callable[[], None]:
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    return lambda: termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _make_raw_windows() -> Callable[[], None]:
    # Virtual terminal input and output, no line editing (SetConsoleMode in Microsoft's console
    # documentation): 0x0200 and 0x0004; cleared are echo, line and processed input (0x7).
    import ctypes

    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    handles = [kernel32.GetStdHandle(-10), kernel32.GetStdHandle(-11)]
    before = [ctypes.c_uint32(), ctypes.c_uint32()]
    for handle, mode in zip(handles, before, strict=True):
        kernel32.GetConsoleMode(handle, ctypes.byref(mode))
    kernel32.SetConsoleMode(handles[0], (before[0].value & ~0x7) | 0x0200)
    kernel32.SetConsoleMode(handles[1], before[1].value | 0x0004)

    def restore() -> None:
        for handle, mode in zip(handles, before, strict=True):
            kernel32.SetConsoleMode(handle, mode)

    return restore


@contextlib.contextmanager
def _following_size(stream: ChannelStream) -> Iterator[None]:
    """Tell the machine whenever our window changes its size (not on Windows: no signal there)."""
    if sys.platform == "win32":
        yield
        return
    import signal

    def tell(*_: object) -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        stream.resize(size.columns, size.lines)

    before = signal.signal(signal.SIGWINCH, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
