"""Keeps the clock of a guest that Desk made; a guest falls behind while its host sleeps."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable

from desk.errors import SshError
from desk.ssh.session import Session

_log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 60.0
_COMMAND_TIMEOUT_S = 20.0
# Less is left alone: to set a clock is to make it jump, which programs notice more than a lag.
_TOLERANCE_S = 0.25
_LEAD_S = 0.1  # time for the command to reach the guest's shell before the second it names


def clock_error_s(guest_s: int, before_s: float, after_s: float) -> float:
    """Return how far a guest's clock is ahead (negative: behind) for certain, in seconds.

    ``guest_s`` are whole seconds read somewhen between ``before_s`` and ``after_s`` of our own
    clock; 0.0 where these allow a clock that is right.
    """
    if guest_s + 1 <= before_s:
        return guest_s + 1 - before_s
    if guest_s >= after_s:
        return guest_s - after_s
    return 0.0


def set_clock(session: Session) -> float:
    """Set the guest's clock where it is provably wrong by a quarter of a second or more; return by
    how much it was, in seconds.

    Raises ``SshError``. The guest's ``date`` takes whole seconds, so the command is sent just
    before one begins.
    """
    before_s = time.time()
    answer = session.run("date -u +%s", timeout_s=_COMMAND_TIMEOUT_S)
    text = answer.stdout.decode(errors="replace").strip()
    if answer.exit_code != 0 or not text.isdecimal():
        raise SshError(f"the machine does not tell its time: {text or answer.stderr!r}")
    error_s = clock_error_s(int(text), before_s, time.time())
    if abs(error_s) < _TOLERANCE_S:
        return 0.0
    target_s = math.ceil(time.time() + _LEAD_S)
    time.sleep(max(0.0, target_s - _LEAD_S - time.time()))
    done = session.run(f"date -u -s @{target_s}", timeout_s=_COMMAND_TIMEOUT_S)
    if done.exit_code != 0:
        raise SshError(f"the machine's clock cannot be set: {done.stderr!r}")
    return error_s


class GuestClock:
    """Checks the guest's clock at each new connection, after each sleep and every minute, in a
    thread of its own. ``session`` returns the present connection or raises ``SshError``."""

    def __init__(self, session: Callable[[], Session]) -> None:
        self._session = session
        self._wake = threading.Event()
        self._closing = False
        self._setting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="guest-clock", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check_now(self) -> None:
        """Look at the clock as soon as there is a connection; returns at once."""
        self._wake.set()

    def check(self, session: Session) -> float:
        """Look at the clock now and set it where it is wrong; return by how many seconds it was
        (negative: behind). Raises ``SshError``."""
        with self._setting:
            error_s = set_clock(session)
        if error_s:
            way = "ahead" if error_s > 0 else "behind"
            _log.info("the machine's clock was %.1f s %s and is set", abs(error_s), way)
        return error_s

    def close(self) -> None:
        """End the thread; a command that is under way ends with its connection."""
        self._closing = True
        self._wake.set()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(CHECK_INTERVAL_S)
            self._wake.clear()
            if self._closing:
                return
            with contextlib.suppress(SshError):
                self.check(self._session())
