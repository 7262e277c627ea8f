"""All containers that the engine knows: the live objects, their names, and their records.

The registry is the only writer of the ``containers`` table. Everything here runs on the event
loop, so that a look-up never meets a half-made change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from deskd.domain.state import ContainerRecord, Status, StoredEndpoint
from deskd.errors import Conflict, InvalidArgument, NotFound
from deskd.record import Record
from deskd.services.events import Events
from deskd.services.ports import AttachStream, Process
from deskd.store.database import DuplicateKey, Records

if TYPE_CHECKING:
    from deskd.images.removal import ImageUse


class PendingAttach(Record, frozen=False):
    """A client that attached before the start; served when the process is there."""

    stdin: bool
    stdout: bool
    stderr: bool
    stream: asyncio.Future[AttachStream]


class WaitResult(Record):
    """What a waiting client is told."""

    exit_code: int
    error: str = ""


class Container:
    """One container in the engine's memory.

    ``lock`` is held through every operation that changes what exists (start, exit, removal); it
    is never held while waiting for a process to end.
    """

    def __init__(self, record: ContainerRecord) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self.process: Process | None = None
        self.exec_ids: list[str] = []
        self.pending_attaches: list[PendingAttach] = []
        self.restart_task: asyncio.Task[None] | None = None
        self.restart_delay_s = 0.0
        self.removing = False  # a removal is under way: no start any more
        self.starts_again = False  # keeps auto-removal away between stop and start
        self.ends_with_machine = False  # its restart policy waits for the next engine
        self.stops_under_way = 0  # each of them is told of when the process has ended
        self._exit_waiters: set[asyncio.Future[WaitResult]] = set()
        self._removal_waiters: set[asyncio.Future[WaitResult]] = set()

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def active(self) -> bool:
        """Running, paused or between two runs: what ``stop`` works on and ``rm`` refuses."""
        return self.record.state.running or self.record.state.status is Status.RESTARTING

    def next_exit(self) -> asyncio.Future[WaitResult]:
        """Return a future of the next end of the container's process."""
        return self._future(self._exit_waiters)

    def removal(self) -> asyncio.Future[WaitResult]:
        """Return a future of the container's removal."""
        return self._future(self._removal_waiters)

    @staticmethod
    def _future(waiters: set[asyncio.Future[WaitResult]]) -> asyncio.Future[WaitResult]:
        future: asyncio.Future[WaitResult] = asyncio.get_running_loop().create_future()
        waiters.add(future)
        future.add_done_callback(waiters.discard)
        return future

    def tell_exit(self) -> None:
        """Wake everyone who waits for the process's end."""
        self._tell(self._exit_waiters)

    def tell_removal(self) -> None:
        """Wake everyone who waits, for whatever: nothing more will come."""
        self._tell(self._exit_waiters)
        self._tell(self._removal_waiters)
        for attach in self.pending_attaches:
            if not attach.stream.done():
                attach.stream.set_exception(
                    Conflict(f"container {self.record.short_id} was removed before it started")
                )
        self.pending_attaches.clear()

    def _tell(self, waiters: set[asyncio.Future[WaitResult]]) -> None:
        state = self.record.state
        # The text of a start that failed is the answer to that start, nobody else's.
        ran = state.finished_at_ns >= state.started_at_ns > 0
        result = WaitResult(state.exit_code, state.error if ran else "")
        for future in list(waiters):
            if not future.done():
                future.set_result(result)

    def event_attributes(self) -> dict[str, str]:
        """Return what every event about this container carries."""
        return {**self.record.labels, "image": self.record.image_name, "name": self.record.name}


class ContainerRegistry:
    """Finds containers by ID, name or a unique beginning of an ID."""

    def __init__(self, records: Records[ContainerRecord], events: Events) -> None:
        self._records = records
        self._events = events
        self._by_id: dict[str, Container] = {}
        self._by_name: dict[str, Container] = {}
        self._unsettled: dict[str, str] = {}  # the image by the ID
        self._on_removal: list[Callable[[Container], None]] = []

    def load(self) -> None:
        """Read all records; call once, at the engine's start."""
        for record in self._records.all():
            self._remember(Container(record))

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, reference: str) -> Container | None:
        """Return the container of this name or ID (or a unique beginning of it), or None."""
        name = reference.removeprefix("/")
        found = self._by_id.get(name) or self._by_name.get(name)
        if found is not None or not name:
            return found
        matching = [c for key, c in self._by_id.items() if key.startswith(name)]
        if len(matching) > 1:
            raise InvalidArgument(
                f"Multiple IDs found with provided prefix: {name}; write more of the ID"
            )
        return matching[0] if matching else None

    def get(self, reference: str) -> Container:
        """Like ``find``; raises ``NotFound``."""
        found = self.find(reference)
        if found is None:
            raise NotFound(f"No such container: {reference}")
        return found

    def check_free(self, name: str) -> None:
        """Raise ``Conflict`` where ``name`` is taken."""
        taken = self._by_name.get(name)
        if taken is not None:
            raise _name_conflict(name, taken.id)

    def has_name(self, name: str) -> bool:
        return name in self._by_name

    def add(self, record: ContainerRecord) -> Container:
        """Keep a new container. Raises ``Conflict`` where the name is taken."""
        self.check_free(record.name)
        try:
            self._records.insert(record)
        except DuplicateKey as error:
            raise _name_conflict(record.name, "in the database") from error
        container = Container(record)
        self._remember(container)
        return container

    def save(self, container: Container) -> None:
        """Write the container's record as it is now."""
        self._records.put(container.record)

    def rename(self, container: Container, name: str) -> None:
        """Give a container another name. Raises ``Conflict``."""
        self.check_free(name)
        old = container.record.name
        container.record.name = name
        try:
            self.save(container)
        except BaseException:
            container.record.name = old
            raise
        del self._by_name[old]
        self._by_name[name] = container

    def forget(self, container: Container) -> None:
        """Remove the container's record; idempotent."""
        self._records.delete(container.id)
        self._by_id.pop(container.id, None)
        if self._by_name.get(container.name) is container:
            del self._by_name[container.name]
        for tell in self._on_removal:
            tell(container)

    def on_removal(self, tell: Callable[[Container], None]) -> None:
        """Have ``tell`` called for each container whose record is removed from now on."""
        self._on_removal.append(tell)

    def tell(
        self, container: Container, action: str, attributes: Mapping[str, str] | None = None
    ) -> None:
        """Publish an event about a container."""
        self._events.publish(
            "container", action, container.id, container.event_attributes() | dict(attributes or {})
        )

    def tell_joined(self, container: Container) -> None:
        """Tell of the networks and volumes that a starting container takes."""
        for endpoint in container.record.endpoints.values():
            self._tell_network("connect", container, endpoint)
        for point in container.record.mounts:
            if point.type == "volume":
                attributes = {
                    "container": container.id,
                    "destination": point.destination,
                    "driver": point.driver,
                    "propagation": point.propagation,
                    "read/write": "true" if point.read_write else "false",
                }
                self._events.publish("volume", "mount", point.name, attributes)

    def tell_left(self, container: Container, endpoints: Iterable[StoredEndpoint]) -> None:
        """Tell of the networks and volumes that an ended container has given back."""
        for endpoint in endpoints:
            self._tell_network("disconnect", container, endpoint)
        for point in container.record.mounts:
            if point.type == "volume":
                attributes = {"container": container.id, "driver": point.driver}
                self._events.publish("volume", "unmount", point.name, attributes)

    def tell_end(
        self, container: Container, left: Iterable[StoredEndpoint], code: int, ran_s: float
    ) -> None:
        """Tell of a process's end in Docker's order: what was given back, the stops that caused
        it, and the end itself."""
        self.tell_left(container, left)
        for _ in range(container.stops_under_way):
            self.tell(container, "stop")
        container.stops_under_way = 0
        self.tell(container, "die", {"exitCode": str(code), "execDuration": str(int(ran_s))})

    def _tell_network(self, action: str, container: Container, endpoint: StoredEndpoint) -> None:
        attributes = {
            "container": container.id,
            "name": endpoint.network_name,
            "type": endpoint.driver,
        }
        self._events.publish("network", action, endpoint.network_id, attributes)

    def tell_prune(self, kind: str, reclaimed_bytes: int) -> None:
        """Publish the event of a prune."""
        self._events.publish(kind, "prune", "", {"reclaimed": str(reclaimed_bytes)})

    def unsettled(self, container_id: str, image_id: str = "") -> None:
        """Note a container that has files and no record: it is being made, on ``image_id``, or its
        files are being removed. End it with ``settled``."""
        self._unsettled[container_id] = image_id

    def settled(self, container_id: str) -> None:
        """End what ``unsettled`` noted; idempotent."""
        self._unsettled.pop(container_id, None)

    def known(self) -> set[str]:
        """Return the ID of every container, also of unsettled ones; from any thread."""
        return {*self._unsettled.copy(), *self._by_id.copy()}

    def running(self) -> set[str]:
        """Return the IDs of the containers with a process; from any thread."""
        return {key for key, found in self._by_id.copy().items() if found.active}

    def volume_uses(self) -> dict[str, set[str]]:
        """Return which volumes each container has, by its ID; from any thread."""
        return {
            key: {point.name for point in found.record.mounts if point.type == "volume"}
            for key, found in self._by_id.copy().items()
        }

    def image_uses(self) -> list[ImageUse]:
        """Return which image each container stands on, also each that is being made; from any
        thread."""
        from deskd.images.removal import ImageUse

        making = self._unsettled.copy()  # first: a container goes from there to the others
        return [
            ImageUse(container.id, container.record.image_id, container.active)
            for container in self._by_id.copy().values()
        ] + [ImageUse(key, image_id, running=False) for key, image_id in making.items() if image_id]

    def using_volume(self, name: str) -> list[Container]:
        """Return the containers that have this volume among their mounts."""
        return [
            container
            for container in self._by_id.values()
            if any(m.type == "volume" and m.name == name for m in container.record.mounts)
        ]

    def counts(self) -> Mapping[str, int]:
        """Return how many containers are in which state, by the names of ``/info``."""
        statuses: Iterable[Status] = (c.record.state.status for c in self._by_id.values())
        running = paused = stopped = 0
        for status in statuses:
            if status in (Status.RUNNING, Status.RESTARTING):
                running += 1
            elif status is Status.PAUSED:
                paused += 1
            else:
                stopped += 1
        return {"running": running, "paused": paused, "stopped": stopped}

    def _remember(self, container: Container) -> None:
        self._by_id[container.id] = container
        self._by_name[container.name] = container


def _name_conflict(name: str, holder: str) -> Conflict:
    return Conflict(
        f'Conflict. The container name "/{name}" is already in use by container "{holder}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
