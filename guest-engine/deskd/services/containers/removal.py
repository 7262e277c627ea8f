"""The end of containers: their networks, files, records and anonymous volumes go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import suppress

from deskd.domain.binned import BinRecord, Kind, new_entry
from deskd.domain.state import Status
from deskd.errors import Conflict, DeskdError
from deskd.layout import DataRoot
from deskd.services.containers.creation import remove_directory
from deskd.services.containers.endpoints import Endpoints
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.ports import RootFilesystems, Runtime
from deskd.services.volumes import Volumes
from deskd.storage.sizes import size_bytes
from deskd.store.database import Records

log = logging.getLogger(__name__)

_ANSWERING_S = 0.01


class Removal:
    """Removes containers that have ended; ``close`` waits for files that go in the background."""

    def __init__(
        self,
        registry: ContainerRegistry,
        runtime: Runtime,
        roots: RootFilesystems,
        endpoints: Endpoints,
        volumes: Volumes,
        layout: DataRoot,
        binned: Records[BinRecord],
    ) -> None:
        self._registry = registry
        self._runtime = runtime
        self._roots = roots
        self._endpoints = endpoints
        self._volumes = volumes
        self._layout = layout
        self._binned = binned
        self._cleaning: set[asyncio.Future[None]] = set()

    async def remove_locked(
        self,
        container: Container,
        *,
        volumes: bool,
        wait_for_files: bool = True,
        group: str = "",
    ) -> None:
        """Remove with the lock held; no restart waits. With a ``group`` it goes into the bin.
        Without ``wait_for_files`` they go in the
        background; an engine that ends before they are gone sweeps them at its next start."""
        record = container.record
        if group and record.state.status in (Status.CREATED, Status.EXITED):
            await self._put_into_bin(container, group, volumes=volumes)
            return
        record.move(Status.REMOVING)
        try:
            await self._endpoints.leave_all(record)
            if wait_for_files:
                self._registry.save(container)  # an engine that dies now finishes it later
                await asyncio.to_thread(self.delete_files, record.id)
        except BaseException:
            record.move(Status.DEAD)
            self._registry.save(container)
            raise
        if not wait_for_files:
            self._registry.unsettled(record.id)
        self._registry.forget(container)
        if volumes:
            await self._remove_anonymous_volumes(container)
        self._registry.tell(container, "destroy")
        container.tell_removal()
        if wait_for_files:
            await self._runtime.forget(record.id)
        else:
            self._in_background(self._delete_forgotten(record.id))

    async def _put_into_bin(self, container: Container, group: str, *, volumes: bool) -> None:
        """Take a container away from everybody's sight, with its record as it is and its files."""
        record = container.record
        await self._endpoints.leave_all(record)
        size = await asyncio.to_thread(size_bytes, self._layout.container(record.id))
        entry = new_entry(
            Kind.CONTAINER, record.name, group, record, size_bytes=size, entry_id=record.id
        )
        self._registry.unsettled(record.id)
        with self._binned.database.transaction():
            self._binned.insert(entry)
            self._registry.forget(container)
        self._registry.tell(container, "destroy")
        if volumes:
            await self._remove_anonymous_volumes(container, group)
        container.tell_removal()
        await self._runtime.forget(record.id)

    def _in_background(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(_logged(work))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    async def _delete_forgotten(self, container_id: str) -> None:
        try:
            await asyncio.sleep(_ANSWERING_S)  # who waits for the removal is answered first
            await self._runtime.forget(container_id)
            await asyncio.to_thread(self.delete_files, container_id)
        finally:
            self._registry.settled(container_id)

    def delete_files(self, container_id: str) -> None:
        """Delete the container's root and directory; idempotent. Blocks."""
        self._roots.remove(container_id)
        remove_directory(self._layout.container(container_id))

    async def _remove_anonymous_volumes(self, container: Container, group: str = "") -> None:
        for point in container.record.mounts:
            if point.type == "volume" and point.anonymous:
                with suppress(Conflict):  # another container uses it by --volumes-from
                    await self._volumes.remove(point.name, force=True, group=group)

    async def close(self) -> None:
        """Wait until no files are being deleted any more."""
        await asyncio.gather(*self._cleaning, return_exceptions=True)


async def _logged(work: Awaitable[None]) -> None:
    """Do work that nobody waits for; a failure is logged, the next start makes up for it."""
    try:
        await work
    except (OSError, DeskdError):
        log.exception("the files of a removed container cannot be deleted now")
