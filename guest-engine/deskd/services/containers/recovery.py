"""What an engine does first: it finds again what an earlier engine left running."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from deskd.domain.process import Exit, FoundMonitor
from deskd.domain.state import Status
from deskd.errors import DeskdError
from deskd.layout import DataRoot
from deskd.services.containers import laptop_folders
from deskd.services.containers.endpoints import Endpoints
from deskd.services.containers.health import HealthChecks
from deskd.services.containers.lifecycle import Lifecycle
from deskd.services.containers.machine_restart import MachineRestart
from deskd.services.containers.outcomes import policy_restarts
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.containers.removal import Removal
from deskd.services.ports import Runtime
from deskd.services.volumes import Volumes


class Recovery:
    """Brings records and processes together after an engine restart."""

    def __init__(
        self,
        registry: ContainerRegistry,
        runtime: Runtime,
        endpoints: Endpoints,
        lifecycle: Lifecycle,
        removal: Removal,
        health: HealthChecks,
        layout: DataRoot,
        volumes: Volumes,
        restart: MachineRestart,
    ) -> None:
        self._registry = registry
        self._runtime = runtime
        self._endpoints = endpoints
        self._lifecycle = lifecycle
        self._removal = removal
        self._health = health
        self._layout = layout
        self._volumes = volumes
        self._restart = restart

    async def restore(self) -> None:
        """Find the monitors of an earlier engine, record what ended meanwhile, carry out restart
        policies, and begin to give back what a restart of the machine is to give back. Call once,
        before the first request."""
        found = {monitor.key: monitor for monitor in await self._runtime.reconcile()}
        await self._volumes.restore(self._holders(found))
        for container in self._registry:
            state = container.record.state
            if state.status in (Status.REMOVING, Status.DEAD):
                if state.status is Status.DEAD:
                    container.record.move(Status.REMOVING)
                await self._finish_removal(container)
        await self._endpoints.restore([c.record for c in self._registry if c.record.state.running])
        for container in self._registry:
            async with container.lock:
                await self._restore_one(container, found)
        known = {container.id for container in self._registry}
        for key, monitor in found.items():
            # An engine with other IDs may have shared the exec root, and may come back.
            elsewhere = key not in known and self._layout.container_of_sibling(key)
            if key not in known and monitor.exit is not None and not elsewhere:
                await self._runtime.forget(key)
        self._restart.begin()

    def _holders(self, found: dict[str, FoundMonitor]) -> dict[str, set[str]]:
        """Return the containers that have each volume mounted, as far as is known now."""
        holders: dict[str, set[str]] = {}
        for container in self._registry:
            monitor = found.get(container.id)
            if container.record.state.running or (monitor is not None and monitor.exit is None):
                for point in container.record.mounts:
                    if point.type == "volume":
                        holders.setdefault(point.name, set()).add(container.id)
        return holders

    async def _finish_removal(self, container: Container) -> None:
        await asyncio.to_thread(self._removal.delete_files, container.id)
        self._registry.forget(container)

    async def _restore_one(self, container: Container, found: dict[str, FoundMonitor]) -> None:
        record, state = container.record, container.record.state
        monitor = found.get(container.id)
        if monitor is not None and monitor.exit is None and self._adopt(container, monitor):
            return
        comes_back = self._restart.gives_back(container.id)
        container.ends_with_machine = container.starts_again = comes_back
        if state.running:
            ended = monitor.exit if monitor is not None else None
            if ended is None:
                ended = Exit(255, time.time_ns(), error="")
            await self._lifecycle.record_exit(container, ended)
        elif state.status is Status.RESTARTING:
            self._lifecycle.schedule_restart(container, 0.0)
        elif record.host_config.auto_remove and not comes_back:
            await self._lifecycle.remove_locked(container, volumes=True)
        elif self._restart.waiting:
            return  # what ran comes back in its turn, and nothing else does
        elif _restarts_with_engine(container) and laptop_folders.wanted(record.mounts):
            # Its folders come with the agent, which connects when this is done.
            record.move(Status.RESTARTING)
            self._lifecycle.schedule_restart(container, 0.0)
        elif _restarts_with_engine(container):
            with suppress(DeskdError):  # recorded in the container's state by start_locked
                await self._lifecycle.start_locked(container)

    def _adopt(self, container: Container, monitor: FoundMonitor) -> bool:
        """Take a living process over; return whether there is one."""
        record, state = container.record, container.record.state
        process = self._runtime.get(container.id)
        if process is None:
            return False
        if not state.running:
            # The engine died between the program's start and the record of it.
            record.move(Status.RUNNING)
            state.started_at_ns = monitor.started_at_ns
        state.pid = process.pid
        container.process = process
        if state.status is Status.RUNNING:
            self._health.begin(container)
        self._registry.save(container)
        self._lifecycle.watch(container, process)
        return True


def _restarts_with_engine(container: Container) -> bool:
    record = container.record
    policy, state = record.host_config.restart_policy, record.state
    if state.status is not Status.EXITED:
        return False
    if policy.name == "always":
        return True
    return not state.manually_stopped and policy_restarts(
        policy, state.exit_code, record.restart_count
    )
