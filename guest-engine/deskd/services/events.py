"""What happened, for those who ask: a bounded history and live subscriptions."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping

from deskd.domain.event import Event
from deskd.domain.filters import Filters
from deskd.errors import InvalidArgument

HISTORY_LENGTH = 1024
QUEUE_LENGTH = 4096


class Events:
    """Publishes events. A subscriber that does not read is cut off after ``QUEUE_LENGTH``
    events, so that nobody's slowness costs the engine memory."""

    def __init__(self) -> None:
        self._history: deque[Event] = deque(maxlen=HISTORY_LENGTH)
        self._subscribers: set[asyncio.Queue[Event | None]] = set()
        self._internal: set[asyncio.Queue[Event | None]] = set()

    @property
    def listeners(self) -> int:
        """How many clients follow; the engine's own parts do not count."""
        return len(self._subscribers - self._internal)

    def publish(self, kind: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:
        """Tell that ``action`` happened to ``actor_id`` now."""
        event = Event(kind, action, actor_id, dict(attributes), time.time_ns())
        self._history.append(event)
        for queue in list(self._subscribers):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._subscribers.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)

    def subscribe(
        self,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        filters: Filters,
        internal: bool = False,
    ) -> AsyncIterator[Event]:
        """Return matching events: those kept since ``since_ns``, then live ones up to
        ``until_ns`` or for ever. The subscription begins now, not at the first read. It is
        ``internal`` where a part of the engine follows.

        Unknown filters match everything, as in dockerd. Raises ``InvalidArgument`` for a time span
        that is none.
        """
        if since_ns is not None and until_ns is not None and since_ns > until_ns:
            raise InvalidArgument(
                f"`since` time ({since_ns // 10**9}) cannot be after `until` time "
                f"({until_ns // 10**9})"
            )
        queue: asyncio.Queue[Event | None] = asyncio.Queue(QUEUE_LENGTH)
        self._subscribers.add(queue)
        if internal:
            self._internal.add(queue)
        wants_history = since_ns is not None or until_ns is not None
        past = [event for event in self._history if event.time_ns >= (since_ns or 0)]
        return self._deliver(queue, past if wants_history else [], until_ns, filters)

    async def _deliver(
        self,
        queue: asyncio.Queue[Event | None],
        past: list[Event],
        until_ns: int | None,
        filters: Filters,
    ) -> AsyncIterator[Event]:
        try:
            for event in past:
                if until_ns is not None and event.time_ns > until_ns:
                    continue
                if matches(event, filters):
                    yield event
            while True:
                timeout_s = None if until_ns is None else (until_ns - time.time_ns()) / 1e9
                if timeout_s is not None and timeout_s <= 0:
                    return
                try:
                    waited = await asyncio.wait_for(queue.get(), timeout_s)
                except TimeoutError:
                    return
                if waited is None:
                    return
                if matches(waited, filters):
                    yield waited
        finally:
            self._subscribers.discard(queue)
            self._internal.discard(queue)


def matches(event: Event, filters: Filters) -> bool:
    """Decide as the API's ``/events`` does."""
    name = event.attributes.get("name", "")
    action = event.action.partition(":")[0]
    return (
        filters.allows("type", event.type)
        and (filters.allows("event", event.action) or filters.allows("event", action))
        and filters.allows("scope", "local")
        and filters.allows_labels(event.attributes)
        and _allows_object(event, filters, "container", name)
        and _allows_object(event, filters, "volume", name)
        and _allows_object(event, filters, "network", name)
        and _allows_object(event, filters, "daemon", name)
        and _allows_image(event, filters)
    )


def _allows_object(event: Event, filters: Filters, kind: str, name: str) -> bool:
    wanted = filters.get(kind)
    if not wanted:
        return True
    if event.type != kind:
        return False
    return name in wanted or any(event.actor_id.startswith(item) for item in wanted if item)


def _allows_image(event: Event, filters: Filters) -> bool:
    wanted = filters.get("image")
    if not wanted:
        return True
    if event.type == "image":
        names = {event.actor_id, event.attributes.get("name", "")}
    else:
        names = {event.attributes.get("image", "")}
    names |= {name.rpartition(":")[0] for name in names if ":" in name}
    return any(item in names for item in wanted)
