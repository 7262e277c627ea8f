"""Logs and events that go on after the way to the engine was lost: the host slept, the network
changed, the agent or the engine was restarted."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from desk.engine.containers import Containers, Filters
from desk.engine.streams import Frame
from desk.engine.system import System
from desk.engine.wire import ProtocolError
from desk.errors import EngineError, EngineUnreachable

T = TypeVar("T")

_PAUSE_S = 0.2
_AWAY_S = 60.0
"""How long to wait for a machine that is away: its agent is there, or the connection broke."""
_NOBODY_S = 5.0
"""How long to wait where nobody listens; an agent or engine that is restarted takes less."""
_STEADY_S = 5.0
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{9})Z ")


def going_on(
    first: Iterable[T], reopen: Callable[[], Iterable[T]], lost: Callable[[EngineError], None]
) -> Iterator[T]:
    """Yield from ``first`` and, each time the way to the engine breaks, from ``reopen()``.

    ``lost`` is told once for each break. Raises the last ``EngineError`` where the engine does not
    come back, and at once one that is the engine's own answer.
    """
    stream, told, alive_at = first, False, time.monotonic()
    while True:
        opened_at = time.monotonic()
        try:
            for item in stream:
                yield item
                alive_at = time.monotonic()
        except EngineError as error:
            now = time.monotonic()
            steady = now - opened_at > _STEADY_S
            if steady:
                alive_at = now
            if not _may_come_back(error) or now - alive_at > _AWAY_S:
                raise
            if steady or not told:
                lost(error)
                told = True
            stream = _opened(reopen, alive_at)
        else:
            return


def _opened(reopen: Callable[[], Iterable[T]], alive_at: float) -> Iterable[T]:
    while True:
        time.sleep(_PAUSE_S)
        try:
            return reopen()
        except EngineError as error:
            away = error.status == 503 or isinstance(error, ProtocolError)
            waited_s = time.monotonic() - alive_at
            if not _may_come_back(error) or waited_s > (_AWAY_S if away else _NOBODY_S):
                raise


def _may_come_back(error: EngineError) -> bool:
    return isinstance(error, EngineUnreachable) or error.status == 503


def follow_events(
    system: System,
    *,
    since: str | None,
    until: str | None,
    filters: Filters | None,
    lost: Callable[[EngineError], None],
) -> Iterator[Any]:
    """Yield events as ``System.events`` does, each of them once."""
    begun = since or f"{time.time():.9f}"
    newest_ns, seen = 0, list[Any]()

    def noted(stream: Iterable[Any]) -> Iterator[Any]:
        nonlocal newest_ns
        for event in stream:
            at_ns = int(event.get("timeNano") or 0)
            if at_ns < newest_ns or event in seen:
                continue
            if at_ns > newest_ns:
                newest_ns = at_ns
                seen.clear()
            seen.append(event)
            yield event

    def reopen() -> Iterator[Any]:
        last = f"{newest_ns // 10**9}.{newest_ns % 10**9:09d}" if newest_ns else begun
        return noted(system.events(since=last, until=until, filters=filters))

    first = noted(system.events(since=since, until=until, filters=filters))
    return going_on(first, reopen, lost)


def follow_logs(
    containers: Containers,
    container: str,
    *,
    since: str | None,
    until: str | None,
    timestamps: bool,
    tail: str,
    details: bool,
    tty: bool,
    lost: Callable[[EngineError], None],
) -> Iterator[Frame]:
    """Yield a container's log as ``Containers.logs`` does, and what is written from then on.

    Each line comes once, by the times that the engine gives them. A terminal's output has no lines
    of its own to tell apart: there, after a break, what was written in the moment of the break may
    be missing or come twice.
    """
    place = _Terminal() if tty else _Place(shows=timestamps)
    begun = f"{time.time():.9f}"

    def stream(since: str | None, tail: str) -> Iterator[Frame]:
        output = containers.logs(
            container,
            follow=True,
            since=since,
            until=until,
            timestamps=timestamps or not tty,
            tail=tail,
            details=details,
            tty=tty,
        )
        return place.noted(output.whole_frames())

    def reopen() -> Iterator[Frame]:
        # Where nothing came yet, all that there is was written meanwhile, unless it was not wanted.
        return stream(place.resume() or (begun if tail == "0" else since), "all")

    return going_on(stream(since, tail), reopen, lost)


class _Place:
    """How far a log was read, by the time that is before each entry; ``shows`` leaves it there."""

    def __init__(self, *, shows: bool) -> None:
        self._shows = shows
        self._stamp = b""
        self._entries = 0  # that had this time
        self._known = 0  # that have it and come once more

    def resume(self) -> str:
        """Return the time from which on to read, as the API takes it, empty before the first
        entry; the next stream begins with entries that were read already."""
        self._known = self._entries
        found = _STAMP.match(self._stamp)
        if found is None:
            return ""
        seconds = calendar.timegm(time.strptime(found[1].decode(), "%Y-%m-%dT%H:%M:%S"))
        return f"{seconds}.{found[2].decode()}"

    def noted(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            found = _STAMP.match(frame.data)
            if found is None:
                raise ProtocolError("the engine sent a line of the log without its time")
            stamp = found[0]
            if stamp != self._stamp:
                self._stamp, self._entries, self._known = stamp, 1, 0
            elif self._known:
                self._known -= 1
                continue
            else:
                self._entries += 1
            yield frame if self._shows else frame._replace(data=frame.data[found.end() :])


class _Terminal:
    """How far a terminal's output was read, by this computer's clock."""

    def __init__(self) -> None:
        self._reached = ""

    def resume(self) -> str:
        return self._reached

    def noted(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self._reached = f"{time.time():.9f}"
            yield frame
