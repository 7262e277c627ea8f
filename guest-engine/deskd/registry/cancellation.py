"""Giving up a transfer from another thread: what blocks in it is woken."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from deskd import errors


class Cancelled(errors.DeskdError):
    """The transfer was given up, because nobody waits for it any more."""


class Cancellation:
    """One transfer's off switch. ``cancel`` may be called from any thread, also repeatedly."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], None]] = []

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def cancel(self) -> None:
        """End the transfer: the next step of each of its threads raises ``Cancelled``."""
        self._event.set()
        with self._lock:
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    def check(self) -> None:
        """Raise ``Cancelled`` once the transfer was given up."""
        if self._event.is_set():
            raise Cancelled("the transfer was given up")

    def pause(self, delay_s: float) -> None:
        """Sleep; raises ``Cancelled`` as soon as the transfer is given up."""
        self._event.wait(delay_s)
        self.check()

    def add_waker(self, wake: Callable[[], None]) -> None:
        """Have ``cancel`` call ``wake``, from its thread."""
        with self._lock:
            self._wakers.append(wake)

    def remove_waker(self, wake: Callable[[], None]) -> None:
        """Undo ``add_waker``; idempotent."""
        with self._lock, contextlib.suppress(ValueError):
            self._wakers.remove(wake)
