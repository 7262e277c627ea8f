"""A person at an attached process: keys in, output out, window size, signals, detaching."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import click

from desk.cli import render, terminal
from desk.engine.streams import STDERR, AttachedStream
from desk.errors import DeskError, EngineError, EngineUnreachable, InvalidRequest

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"

_UNPROXIED = {
    "SIGKILL",
    "SIGSTOP",
    "SIGCHLD",
    "SIGPIPE",
    "SIGURG",
    "SIGWINCH",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGCONT",
    "SIGSEGV",
    "SIGBUS",
    "SIGFPE",
    "SIGILL",
    "SIGABRT",
    "SIGTRAP",
    "SIGSYS",
}
"""Signals that mean this process itself, or that nobody can catch."""

_POLL_SIZE_S = 0.25

_FORCED_AFTER = 3
"""So many Ctrl-C or SIGTERM end this process though the container takes no notice."""


def parse_detach_keys(text: str) -> bytes:
    """Return the bytes that ``ctrl-p,ctrl-q`` stands for; an empty text disables detaching."""
    result = bytearray()
    for key in text.split(",") if text else ():
        name = key.strip()
        if len(name) == 1:
            result += name.encode()
        elif name.startswith("ctrl-") and len(name) == 6:
            code = name[5]
            if code.isascii() and code.isalpha():
                result.append(ord(code.lower()) - ord("a") + 1)
            elif code in "@[\\]^_":
                result.append(ord(code) - ord("@"))
            else:
                raise _bad_keys(text)
        elif name == "DEL":
            result.append(127)
        else:
            raise _bad_keys(text)
    return bytes(result)


def _bad_keys(text: str) -> InvalidRequest:
    return InvalidRequest(
        f"invalid --detach-keys {text!r}",
        hint="Write keys such as ctrl-p,ctrl-q: ctrl- with a letter, or a single character.",
    )


class Detached(DeskError):
    """The person pressed the detach keys; ``attach`` and ``exec`` end with 1, as Docker's do."""

    def __init__(self) -> None:
        super().__init__("detached from the process, which goes on")


class DetachFilter:
    """Finds the detach keys in what is typed; the first keys of an unfinished sequence wait."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return what is to be passed on, and whether the keys are complete."""
        if not self._keys:
            return data, False
        passed = bytearray()
        for position in range(len(data)):
            key = data[position : position + 1]
            if self._keys.startswith(self._held + key):
                self._held += key
                if self._held == self._keys:
                    return bytes(passed), True
            else:
                passed += self._held
                self._held = key if self._keys.startswith(key) else b""
                if not self._held:
                    passed += key
        return bytes(passed), False


class Background:
    """Runs calls to the engine that signal handlers ask for, one after the other, in a thread:
    a handler interrupts the main thread anywhere and must not use the client itself."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="terminal-calls", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], object]) -> None:
        self._calls.put(function)

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            # The process may have ended in the meantime; its exit tells the rest.
            with contextlib.suppress(EngineError):
                function()

    def close(self) -> None:
        self._calls.put(None)
        self._thread.join(1)


@contextlib.contextmanager
def handling(signals: Mapping[int, Callable[[int], None]]) -> Iterator[None]:
    """Handle signals while the block runs. Only the main thread can; elsewhere nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def handler(number: int, _frame: FrameType | None) -> None:
        signals[number](number)

    try:
        for number in signals:
            before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def window_size_followed(resize: Callable[[terminal.Size], object]) -> Iterator[None]:
    """Call ``resize`` now and whenever the window's size changes."""
    background = Background()

    def tell() -> None:
        now = terminal.size()
        if now is not None:
            resize(now)

    background.call(tell)
    try:
        if hasattr(signal, "SIGWINCH"):
            with handling({signal.SIGWINCH: lambda _number: background.call(tell)}):
                yield
        else:
            stop = threading.Event()
            watcher = threading.Thread(
                target=_watch_size, args=(stop, background, tell), daemon=True
            )
            watcher.start()
            try:
                yield
            finally:
                stop.set()
    finally:
        background.close()


def _watch_size(stop: threading.Event, background: Background, tell: Callable[[], None]) -> None:
    before = terminal.size()
    while not stop.wait(_POLL_SIZE_S):
        now = terminal.size()
        if now != before:
            before = now
            background.call(tell)


@contextlib.contextmanager
def signals_passed_on(kill: Callable[[str], object]) -> Iterator[None]:
    """Send the signals that this process gets to the container instead."""
    background = Background()

    impatience = 0

    def pass_on(number: int) -> None:
        nonlocal impatience
        impatience += number in (signal.SIGINT, signal.SIGTERM)
        if impatience >= _FORCED_AFTER:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        background.call(lambda: kill(name))

    numbers = {int(number): pass_on for number in signal.valid_signals() if _is_proxied(number)}
    try:
        with handling(numbers):
            yield
    except KeyboardInterrupt:
        if impatience < _FORCED_AFTER:
            raise
        render.error(
            DeskError(
                f"gave up after {_FORCED_AFTER} interrupts that the container takes no notice of",
                hint="It runs on. `desk kill` ends it; with --init Ctrl-C ends most programs.",
            )
        )
        raise click.exceptions.Exit(1) from None
    finally:
        background.close()


def _is_proxied(number: int) -> bool:
    try:
        return signal.Signals(number).name not in _UNPROXIED
    except ValueError:
        return False  # a real-time signal without a name


def relay(
    stream: AttachedStream, *, tty: bool, stdin: bool, detach_keys: str | None = None
) -> bool:
    """Carry input and output until the process ends its output; return whether the person
    detached instead. The caller closes the stream."""
    keys = parse_detach_keys(DEFAULT_DETACH_KEYS if detach_keys is None else detach_keys)
    detached = threading.Event()
    if stdin:
        filter_ = DetachFilter(keys if tty else b"")
        threading.Thread(
            target=_send_input, args=(stream, filter_, detached), name="stdin", daemon=True
        ).start()
    try:
        for frame in stream:
            if frame.stream == STDERR:
                render.err_bytes(frame.data)
            else:
                render.out_bytes(frame.data)
    except EngineUnreachable:
        if not detached.is_set():
            raise
    if detached.is_set():
        render.note("")  # what follows begins a line
    return detached.is_set()


def _send_input(stream: AttachedStream, detach: DetachFilter, detached: threading.Event) -> None:
    while True:
        try:
            data = terminal.read_input()
        except OSError:  # the terminal is gone
            data = b""
        # The process may end while somebody still types: its end is told by the output.
        with contextlib.suppress(DeskError):
            if not data:
                stream.close_write()
                return
            passed, found = detach.feed(data)
            if passed:
                stream.write(passed)
            if found:
                detached.set()
                stream.close()
                return
