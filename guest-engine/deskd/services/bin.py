"""The bin: what clients removed by way of it comes back by ``restore``, until it is emptied.

A container in it keeps its record and its files, an image its names and layers, a volume its
data. Nothing else of the engine sees them: names are free, and other things may be removed as if
these were gone. The bin is emptied of what is too old, of the oldest where it is too large, and of
everything where the disk is short.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from deskd.domain.binned import BinRecord, Kind
from deskd.domain.image import BinnedImage, short_id
from deskd.domain.reference import parse
from deskd.domain.state import ContainerRecord
from deskd.domain.times import parse_duration
from deskd.errors import Conflict, DeskdError, InvalidArgument, NotFound
from deskd.images.catalog import Catalog
from deskd.layout import DataRoot
from deskd.record import Record
from deskd.runtime.resource_rules import parse_size
from deskd.services.containers.creation import remove_directory
from deskd.services.containers.registry import ContainerRegistry
from deskd.services.containers.removal import Removal
from deskd.services.events import Events
from deskd.services.volumes import Volumes
from deskd.settings import Settings
from deskd.store import records

log = logging.getLogger(__name__)

LOOK_S = 10.0
LEAST_FREE_PARTS = 20  # the disk is short below a twentieth …
LEAST_FREE_BYTES = 2 << 30  # … and below this

_ORDER = (Kind.IMAGE, Kind.VOLUME, Kind.CONTAINER)  # what others stand on comes back first


class BinLimits(Record):
    """How long and how much is kept; an age of 0 keeps nothing. ``everybody``: what clients remove
    that say nothing of the bin goes there, too."""

    age_s: float = 24 * 3600.0
    size_bytes: int = 10 << 30
    everybody: bool = False


def bin_limits(settings: Settings) -> BinLimits:
    """Read the settings of the bin; raises ``InvalidArgument`` that names one."""
    told: dict[str, Any] = {}
    if settings.bin_age:
        try:
            age_ns = 0 if settings.bin_age == "0" else parse_duration(settings.bin_age)
        except ValueError as error:
            raise InvalidArgument(f"--bin-age {error}; write it as 24h, or 0 for no bin") from None
        told["age_s"] = age_ns / 1e9
    if settings.bin_size:
        told["size_bytes"] = parse_size(settings.bin_size, "--bin-size")
    if settings.bin_clients not in ("", "desk", "all"):
        raise InvalidArgument(f"--bin-clients is desk or all, not {settings.bin_clients}")
    return BinLimits(**told, everybody=settings.bin_clients == "all")


def free_space(path: str) -> tuple[int, int]:
    """Return the free bytes of a path's disk, and all of them."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


class Bin:
    """Lists, restores and empties the bin; ``start`` keeps its limits until ``close``."""

    def __init__(
        self,
        catalog: Catalog,
        registry: ContainerRegistry,
        removal: Removal,
        volumes: Volumes,
        events: Events,
        layout: DataRoot,
        limits: BinLimits,
        space: Callable[[str], tuple[int, int]] = free_space,
    ) -> None:
        self._catalog = catalog
        self._registry = registry
        self._removal = removal
        self._volumes = volumes
        self._events = events
        self._layout = layout
        self._limits = limits
        self._space = space
        self._records = records.binned(catalog.database)
        self._lock = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None

    def group(self, asked: str) -> str:
        """Return the group of a removal, empty where it goes past the bin. Clients ask for a group
        of their own by any word, and for a new one by ``1``."""
        if self._limits.age_s <= 0 or not (asked or self._limits.everybody):
            return ""
        return secrets.token_hex(8) if asked in ("", "1", "true") else asked

    # --- looking ----------------------------------------------------------------------------------

    def contents(self) -> dict[str, Any]:
        """Return the body of ``GET /desk/bin``, the latest first."""
        entries = self._records.all()
        return {
            "Entries": [
                {
                    "Id": entry.id,
                    "Kind": str(entry.kind),
                    "Name": entry.name,
                    "Group": entry.group,
                    "RemovedNano": entry.removed_ns,
                    "Size": entry.size_bytes,
                }
                for entry in sorted(entries, key=lambda entry: -entry.removed_ns)
            ],
            "Size": sum(entry.size_bytes for entry in entries),
            "MaxAgeSeconds": self._limits.age_s,
            "MaxSize": self._limits.size_bytes,
        }

    def _chosen(self, ids: Sequence[str]) -> list[BinRecord]:
        found = []
        for entry_id in ids:
            entry = self._records.get(entry_id)
            if entry is None:
                raise NotFound(f"there is nothing with the ID {entry_id} in the bin")
            found.append(entry)
        return found

    # --- bringing back ----------------------------------------------------------------------------

    async def restore(self, ids: Sequence[str]) -> dict[str, Any]:
        """Bring entries back, images and volumes before containers. Returns ``Restored``, whose
        entries may have a ``Warning``, and ``Failed`` with a ``Reason`` each. Raises
        ``NotFound``."""
        restored, failed = [], []
        async with self._lock:
            chosen = sorted(self._chosen(ids), key=lambda entry: _ORDER.index(entry.kind))
            for entry in chosen:
                told: dict[str, Any] = {
                    "Id": entry.id, "Kind": str(entry.kind), "Name": entry.name
                }  # fmt: skip
                try:
                    told["Warning"] = await self._restore(entry)
                except DeskdError as error:
                    failed.append({**told, "Reason": str(error)})
                else:
                    restored.append(told)
        return {"Restored": restored, "Failed": failed}

    async def _restore(self, entry: BinRecord) -> str:
        if entry.kind is Kind.IMAGE:
            return self._restore_image(entry)
        if entry.kind is Kind.VOLUME:
            await self._volumes.put_back(entry)
            return ""
        return self._restore_container(entry)

    def _restore_container(self, entry: BinRecord) -> str:
        record = msgspec.json.decode(entry.payload, type=ContainerRecord)
        if self._registry.has_name(record.name):
            raise Conflict(
                f"there is a container {record.name} now: rename or remove it, then bring this one"
                " back"
            )
        with self._catalog.database.transaction():
            self._records.delete(entry.id)
            container = self._registry.add(record)
        self._registry.settled(record.id)
        self._registry.tell(container, "create")
        lacking = [
            point.name
            for point in record.mounts
            if point.type == "volume" and not self._volumes.exists(point.name)
        ]
        return f"it lacks the volume {lacking[0]}, which is gone" if lacking else ""

    def _restore_image(self, entry: BinRecord) -> str:
        binned = msgspec.json.decode(entry.payload, type=BinnedImage)
        with self._catalog.database.transaction():
            if self._catalog.by_id(binned.id) is None:
                if binned.image is None:
                    raise NotFound(f"the image {short_id(binned.id)} of this name is gone")
                self._catalog.put_back(binned.image)
            taken = []
            for name in binned.names:
                holder = self._catalog.holder(parse(name))
                if holder in ("", binned.id):
                    self._catalog.tag(parse(name), binned.id)
                else:
                    taken.append(f"{parse(name).familiar} is the name of {short_id(holder)} now")
            self._records.delete(entry.id)
        self._events.publish("image", "tag", binned.id, {"name": entry.name})
        return f"{', '.join(taken)}: `tag` gives it another name" if taken else ""

    # --- emptying ---------------------------------------------------------------------------------

    async def empty(self, ids: Sequence[str] = ()) -> int:
        """Delete entries, without ``ids`` all of them; return the bytes that the disk gets back.
        Raises ``NotFound``."""
        async with self._lock:
            return await self._delete(self._chosen(ids) if ids else self._records.all())

    async def _delete(self, entries: Sequence[BinRecord]) -> int:
        freed = 0
        try:
            for entry in entries:
                await asyncio.shield(self._delete_one(entry))
                freed += entry.size_bytes
        finally:
            if any(entry.kind is Kind.IMAGE for entry in entries):
                await asyncio.shield(asyncio.to_thread(self._catalog.layers.release_unused))
        return freed

    async def _delete_one(self, entry: BinRecord) -> None:
        # First: what is half deleted must not come back. An engine that is killed now sweeps the
        # files at its next start.
        self._records.delete(entry.id)
        if entry.kind is not Kind.IMAGE:
            await asyncio.to_thread(self._catalog.database.flush)
        if entry.kind is Kind.CONTAINER:
            try:
                await asyncio.to_thread(self._removal.delete_files, entry.id)
            finally:
                self._registry.settled(entry.id)
        elif entry.kind is Kind.VOLUME:
            place = self._layout.binned_volume(entry.id)
            await asyncio.to_thread(remove_directory, place)

    def start(self) -> None:
        """Begin to keep the limits."""
        self._keeping = asyncio.create_task(self._keep_limits())

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def _keep_limits(self) -> None:
        while True:
            try:
                await self.enforce()
            except (OSError, DeskdError):
                log.exception("the bin cannot be emptied now")
            await asyncio.sleep(LOOK_S)

    async def enforce(self) -> None:
        """Delete what is beyond the limits, the oldest first."""
        async with self._lock:
            entries = sorted(self._records.all(), key=lambda entry: entry.removed_ns)
            if entries:
                await self._delete(self._beyond(entries))

    def _beyond(self, entries: Sequence[BinRecord]) -> list[BinRecord]:
        free_bytes, all_bytes = self._space(self._layout.path)
        if free_bytes < min(LEAST_FREE_BYTES, all_bytes // LEAST_FREE_PARTS):
            log.warning("the disk is short: the bin is emptied")
            return list(entries)
        too_old_ns = time.time_ns() - int(self._limits.age_s * 1e9)
        left_bytes = sum(entry.size_bytes for entry in entries)
        gone = []
        for entry in entries:
            if entry.removed_ns > too_old_ns and left_bytes <= self._limits.size_bytes:
                break
            gone.append(entry)
            left_bytes -= entry.size_bytes
        return gone
