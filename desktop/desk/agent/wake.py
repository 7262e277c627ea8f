"""Noticing that the host, or this process, was asleep."""

from __future__ import annotations

import time

_SLACK_S = 5.0


class SleepDetector:
    """Tells from two clocks whether time was lost between two calls of ``slept_s``.

    While a computer sleeps, the wall clock goes on and the monotonic clock stands still (Linux,
    macOS) or goes on (Windows, a stopped process); either shows. A wall clock that is set forward
    looks like sleep; what follows is one needless check.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._wall_s = time.time()
        self._monotonic_s = time.monotonic()

    def slept_s(self) -> float:
        """Return how many seconds more than the interval passed since the last call, 0.0 where
        that is within what a busy computer explains."""
        wall_s, monotonic_s = time.time(), time.monotonic()
        passed_s = max(wall_s - self._wall_s, monotonic_s - self._monotonic_s)
        self._wall_s, self._monotonic_s = wall_s, monotonic_s
        lost_s = passed_s - self._interval_s
        return lost_s if lost_s > _SLACK_S else 0.0
