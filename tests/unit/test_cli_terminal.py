"""What happens at the terminal itself: detach keys, signals, raw mode, Windows' modules."""

from __future__ import annotations

import importlib
import os
import pty
import signal
import sys
import termios
import threading
import time

import pytest

from desk.cli import interactive, render, terminal
from desk.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("ctrl-a", b"\x01"),
        ("a,b", b"ab"),
        ("ctrl-@,ctrl-[,ctrl-_", b"\x00\x1b\x1f"),
        ("DEL", b"\x7f"),
        ("", b""),
    ],
)
def test_detach_keys(text: str, keys: bytes) -> None:
    assert interactive.parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ctrl-pp", "strg-p", "ctrl-p,"])
def test_wrong_detach_keys_are_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match="invalid --detach-keys"):
        interactive.parse_detach_keys(text)


def test_detach_keys_are_found_in_any_split() -> None:
    for split in range(6):
        text = b"ab\x10\x11cd"
        found = interactive.DetachFilter(b"\x10\x11")
        passed, done = found.feed(text[:split])
        if not done:
            more, done = found.feed(text[split:])
            passed += more
        assert done
        assert passed == b"ab"


def test_an_unfinished_detach_sequence_is_passed_on() -> None:
    found = interactive.DetachFilter(b"\x10\x11")
    assert found.feed(b"a\x10") == (b"a", False)
    assert found.feed(b"b") == (b"\x10b", False)
    assert found.feed(b"\x10\x10") == (b"\x10", False)
    assert found.feed(b"\x11") == (b"", True)
    assert interactive.DetachFilter(b"").feed(b"\x10\x11") == (b"\x10\x11", False)


def test_signals_are_passed_on_and_handlers_come_back() -> None:
    sent: list[str] = []
    arrived = threading.Event()

    def kill(name: str) -> None:
        sent.append(name)
        arrived.set()

    before = signal.getsignal(signal.SIGTERM)
    with interactive.signals_passed_on(kill):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert arrived.wait(60)
        arrived.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        assert arrived.wait(60)
    assert sent == ["SIGUSR1", "SIGTERM"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_third_interrupt_ends_the_command() -> None:
    with interactive.signals_passed_on(lambda name: None):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_window_is_told_at_once_and_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[terminal.Size] = []
    told = threading.Event()

    def resize(now: terminal.Size) -> None:
        sizes.append(now)
        told.set()

    monkeypatch.setattr(terminal, "size", lambda: terminal.Size(24, 80))
    with interactive.window_size_followed(resize):
        assert told.wait(60)
        told.clear()
        monkeypatch.setattr(terminal, "size", lambda: terminal.Size(50, 132))
        os.kill(os.getpid(), signal.SIGWINCH)
        assert told.wait(60)
    assert sizes == [(24, 80), (50, 132)]


def test_raw_mode_is_undone_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, line = pty.openpty()
    with open(line, closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        before = termios.tcgetattr(line)

        def fail_in_raw_mode() -> None:
            with terminal.raw():
                assert not termios.tcgetattr(line)[3] & termios.ECHO
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail_in_raw_mode()
        assert termios.tcgetattr(line) == before
    os.close(line)
    os.close(controller)


def test_a_terminal_is_asked_for_only_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open(os.devnull) as stdin:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", stdin)
        terminal.check_input(tty=True, attach_stdin=False)
        terminal.check_input(tty=False, attach_stdin=True)
        with pytest.raises(terminal.NotATerminal, match="not a TTY"):
            terminal.check_input(tty=True, attach_stdin=True)


@pytest.mark.parametrize("name", ["windows_console", "windows_processes"])
def test_modules_for_windows_import_anywhere(name: str) -> None:
    assert importlib.import_module(f"desk.cli.{name}")


def test_progress_is_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with render.Progress() as progress:
        progress("Doing this")
        progress("Doing that")
        progress.done("Done.")
    assert capsys.readouterr().err == "Doing this\nDoing that\nDone.\n"


def test_progress_on_a_terminal_leaves_the_last_word_only() -> None:
    controller, line = pty.openpty()
    with open(line, "w", closefd=False) as stream, render.Progress(stream) as progress:
        progress("Doing this")
        progress("Doing that")
        progress.done("Done.")
    time.sleep(0.05)
    text = os.read(controller, 4096).decode()
    os.close(line)
    os.close(controller)
    assert text == "\r\033[KDoing this\r\033[KDoing that\r\033[KDone.\r\n"
