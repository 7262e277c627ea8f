"""The containers of the machine in use, kept current by the engine's events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from desk.errors import DeskError
from desk.gui.models.listing import ContainerRow, container_row
from desk.gui.stores.ports import Containers
from desk.gui.stores.stream import StreamReader
from desk.gui.tasks import TaskRunner

GATHER_MS = 60  # events come in bursts; one refresh serves a burst
RETRY_MS = 2000
AGE_REFRESH_MS = 30_000  # "Up 2 minutes" grows without an event


class ContainersStore(QObject):
    """Knows all containers; does what the person asks of them.

    Signals:
        changed(list): the new ``ContainerRow`` list.
        failed(object): a ``DeskError`` of an action the person asked for.
        online_changed(bool): whether the engine answers.
        acting_changed(object): the frozenset of container IDs that an action is running for.
        images_changed(): an event told of a new or removed image.
    """

    changed = Signal(list)
    failed = Signal(object)
    online_changed = Signal(bool)
    acting_changed = Signal(object)
    images_changed = Signal()

    def __init__(
        self, engine: Containers, tasks: TaskRunner, parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self._engine = engine
        self._tasks = tasks
        self._online: bool | None = None
        self._acting: frozenset[str] = frozenset()
        self._refreshing = False
        self._again = False
        self._events = StreamReader(self)
        self._events.opened.connect(self.refresh)
        self._events.item.connect(self._on_event)
        self._events.ended.connect(self._on_events_ended)
        self._gather = self._timer(GATHER_MS, self.refresh)
        self._retry = self._timer(RETRY_MS, self.watch)
        self._ages = self._timer(AGE_REFRESH_MS, self.refresh, repeat=True)

    def watch(self) -> None:
        """Begin to follow the engine's events; goes on until ``close``, through restarts."""
        self._events.start(self._engine.events)
        self._ages.start()

    def refresh(self) -> None:
        """Ask for the list; a call during a refresh causes one more after it."""
        if self._refreshing:
            self._again = True
            return
        self._refreshing = True
        self._tasks.run(self._list, self._on_list, self._on_list_failed)

    def start(self, container_id: str) -> None:
        """Start a container."""
        self._act(container_id, lambda: self._engine.start(container_id))

    def stop(self, container_id: str) -> None:
        """Stop a container."""
        self._act(container_id, lambda: self._engine.stop(container_id))

    def remove(self, container_id: str, *, force: bool) -> None:
        """Remove a container; ``force`` also a running one."""
        self._act(container_id, lambda: self._engine.remove(container_id, force=force))

    def close(self) -> None:
        """End the event stream and every timer."""
        for timer in (self._gather, self._retry, self._ages):
            timer.stop()
        self._events.stop()

    def _timer(self, interval_ms: int, call: Callable[[], None], *, repeat: bool = False) -> QTimer:
        timer = QTimer(self)
        timer.setInterval(interval_ms)
        timer.setSingleShot(not repeat)
        timer.timeout.connect(call)
        return timer

    def _list(self) -> list[ContainerRow]:
        return [container_row(answer) for answer in self._engine.list()]

    def _on_list(self, rows: list[ContainerRow]) -> None:
        self._end_refresh()
        self._set_online(online=True)
        self.changed.emit(rows)

    def _on_list_failed(self, error: DeskError) -> None:
        self._end_refresh()
        self._set_online(online=False)

    def _end_refresh(self) -> None:
        self._refreshing = False
        if self._again:
            self._again = False
            self._gather.start()

    def _set_online(self, *, online: bool) -> None:
        if self._online != online:
            self._online = online
            self.online_changed.emit(online)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event.get("Type") == "image":
            self.images_changed.emit()
        self._gather.start()

    def _on_events_ended(self, error: DeskError | None) -> None:
        self._set_online(online=False)
        self._retry.start()

    def _act(self, container_id: str, work: Callable[[], None]) -> None:
        self._set_acting(self._acting | {container_id})

        def done(_: object = None) -> None:
            self._set_acting(self._acting - {container_id})
            self.refresh()

        def failed(error: DeskError) -> None:
            done()
            self.failed.emit(error)

        self._tasks.run(work, done, failed)

    def _set_acting(self, acting: frozenset[str]) -> None:
        self._acting = acting
        self.acting_changed.emit(acting)
