"""A restart of the machine that gives back exactly what ran.

``prepare`` stops the containers and keeps in the database which ran, in the order of their starts.
The next engine starts them again in that order, pauses those that were paused, and tells what
became of each. Restart policies and ``--rm`` count for nothing meanwhile: the machine's restart is
no end of a container. An engine that dies on the way leaves the rest to the next one. What the
power policy froze counts as running: the policy decides anew, as soon as it is told of the power.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

import msgspec

from deskd.domain.container import ApiStruct
from deskd.domain.state import Status
from deskd.errors import DeskdError, InvalidArgument, NotModified
from deskd.services.containers import laptop_folders
from deskd.services.containers.lifecycle import DEFAULT_STOP_TIMEOUT_S, Lifecycle
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.folders import Folders
from deskd.store.database import Database

log = logging.getLogger(__name__)

_KEY = "machine-restart"
_REMOVED = "removed"


class RestartRequest(ApiStruct, frozen=True):
    """Body of ``POST /desk/restart``. ``policy_only``: restart policies decide what comes back."""

    policy_only: bool = False
    timeout_seconds: int = DEFAULT_STOP_TIMEOUT_S


class _Entry(msgspec.Struct, omit_defaults=True):
    """A container that is to come back, and what became of that."""

    id: str
    name: str
    before: str
    done: bool = False
    error: str = ""


class _Plan(msgspec.Struct, omit_defaults=True):
    entries: list[_Entry] = []
    waiting: bool = False  # for the next engine, or for the end of this one's work
    seconds: float = 0.0  # from the engine's start to the last container's


class MachineRestart:
    """Keeps the plan of the last restart, carries it out, and reports on it."""

    def __init__(
        self,
        registry: ContainerRegistry,
        lifecycle: Lifecycle,
        folders: Folders,
        database: Database,
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._folders = folders
        self._database = database
        self._preparing = asyncio.Lock()
        self._starting: asyncio.Task[None] | None = None
        kept = database.get_meta(_KEY)
        self._plan = msgspec.json.decode(kept, type=_Plan) if kept else _Plan()

    # --- before -----------------------------------------------------------------------------------

    async def prepare(self, wanted: RestartRequest) -> dict[str, Any]:
        """Stop all containers, each with at most ``timeout_seconds``; return the report.

        Asked twice, what the first call stopped is still to come back. Raises ``InvalidArgument``.
        """
        if wanted.timeout_seconds < 0:
            raise InvalidArgument("TimeoutSeconds must not be negative")
        async with self._preparing:
            await self.close()
            active = sorted((c for c in self._registry if c.active), key=_started)
            if not wanted.policy_only:
                self._keep(active)
            stops = [self._stop(container, wanted) for container in active]
            await asyncio.gather(*stops)
        return self.report()

    def _keep(self, active: list[Container]) -> None:
        now = {container.id for container in active}
        owed = [
            entry
            for entry in self._plan.entries
            if not entry.done and entry.id not in now and self._registry.find(entry.id)
        ]
        running = [_Entry(c.id, c.name, _own_status(c)) for c in active]
        self._plan = _Plan(owed + running, waiting=True)
        self._save()

    async def _stop(self, container: Container, wanted: RestartRequest) -> None:
        try:
            with suppress(NotModified):
                await self._lifecycle.stop_with_machine(
                    container,
                    timeout_s=wanted.timeout_seconds,
                    starts_again=not wanted.policy_only,
                )
        except DeskdError as error:  # the machine's end is the end of this one, too
            log.warning("before the machine's end: %s", error)

    # --- after ------------------------------------------------------------------------------------

    def gives_back(self, container_id: str) -> bool:
        """Say whether a container is still to be started because the machine was restarted."""
        return any(entry.id == container_id and not entry.done for entry in self._plan.entries)

    @property
    def waiting(self) -> bool:
        """Whether this engine starts after such a restart: restart policies start nothing then."""
        return self._plan.waiting

    def begin(self) -> None:
        """Start what is to come back, in the background; call once, when all is restored."""
        if self._plan.waiting:
            self._starting = asyncio.create_task(self._give_back())

    async def _give_back(self) -> None:
        began = time.monotonic()
        for entry in self._plan.entries:
            if entry.done:
                continue
            try:
                await self._start(entry)
            except DeskdError as error:  # also recorded in the container's state
                entry.error = str(error)
            except OSError as error:
                log.exception("container %s cannot be started again", entry.name)
                entry.error = str(error)
            entry.done = True
            self._save()
        self._plan.waiting, self._plan.seconds = False, round(time.monotonic() - began, 3)
        self._save()

    async def _start(self, entry: _Entry) -> None:
        container = self._registry.find(entry.id)
        if container is None:
            return
        if laptop_folders.wanted(container.record.mounts):
            await self._folders.wait_for_agent()
        await self._lifecycle.start_again(container)
        status = container.record.state.status
        if entry.before == Status.PAUSED and status is Status.RUNNING:
            await self._lifecycle.pause(container.id)

    def report(self) -> dict[str, Any]:
        """Return the body of ``GET /desk/restart``: each container's state before, and now."""
        return {
            "Pending": sum(not entry.done for entry in self._plan.entries),
            "Seconds": self._plan.seconds,
            "Containers": [
                {
                    "Id": entry.id,
                    "Name": entry.name,
                    "Before": entry.before,
                    "After": self._status(entry),
                    "Error": entry.error,
                }
                for entry in self._plan.entries
            ],
        }

    def _status(self, entry: _Entry) -> str:
        container = self._registry.find(entry.id)
        return _REMOVED if container is None else _own_status(container)

    async def close(self) -> None:
        """Start nothing more; what is left is the next engine's."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
            self._starting = None

    def _save(self) -> None:
        self._database.set_meta(_KEY, msgspec.json.encode(self._plan).decode())


def _own_status(container: Container) -> str:
    state = container.record.state
    return str(Status.RUNNING if state.held_by_power else state.status)


def _started(container: Container) -> tuple[int, int]:
    return container.record.state.started_at_ns, container.record.created_ns
