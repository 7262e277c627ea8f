"""Removed volumes: a directory beside the others until it is brought back or deleted.

A volume moves by three steps: its entry is written, its directory is renamed, and one transaction
deletes its record and says that the entry is whole. What an engine that was killed leaves between
two of them is settled by ``restore``: the directory says where the volume is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil

import msgspec

from deskd.domain.binned import BinRecord, Kind, new_entry
from deskd.domain.volume import VolumeRecord
from deskd.errors import SystemFailure
from deskd.layout import BIN_PREFIX, DataRoot
from deskd.storage.sizes import size_bytes
from deskd.store import records
from deskd.store.database import Records

log = logging.getLogger(__name__)


class VolumeBin:
    """Moves volumes into the bin and out of it; ``volumes`` is the table of those outside.

    The caller holds the volume, so that nothing else changes it, and has unmounted it.
    """

    def __init__(self, volumes: Records[VolumeRecord], layout: DataRoot) -> None:
        self._volumes = volumes
        self._layout = layout
        self._binned = records.binned(volumes.database)

    async def take(self, record: VolumeRecord, group: str) -> None:
        """Move a volume into the bin. Raises ``SystemFailure``; then it is where it was."""
        await asyncio.to_thread(self._take, record, group)

    def _take(self, record: VolumeRecord, group: str) -> None:
        size = 0 if record.needs_mount else size_bytes(self._layout.volume_data(record.name))
        entry = new_entry(Kind.VOLUME, record.name, group, record, size_bytes=size, moving=True)
        self._binned.insert(entry)
        self._volumes.database.flush()
        try:
            self._volumes.database.with_room(
                lambda: os.rename(self._place(record.name), self._layout.binned_volume(entry.id))
            )
        except OSError as error:
            self._binned.delete(entry.id)
            raise SystemFailure(
                f"the volume {record.name} cannot be removed: {error.strerror}"
            ) from error
        self._finish(entry)

    def _finish(self, entry: BinRecord) -> None:
        with self._volumes.database.transaction():
            self._volumes.delete(entry.name)
            self._binned.put(msgspec.structs.replace(entry, moving=False))

    def put_back(self, entry: BinRecord) -> None:
        """Bring a volume back, whose name is free. Blocks. Raises ``SystemFailure``."""
        try:
            os.rename(self._layout.binned_volume(entry.id), self._place(entry.name))
        except OSError as error:
            raise SystemFailure(
                f"the volume {entry.name} cannot be brought back: {error.strerror}"
            ) from error
        self._record_again(entry)

    def _record_again(self, entry: BinRecord) -> None:
        with self._volumes.database.transaction():
            self._volumes.insert(msgspec.json.decode(entry.payload, type=VolumeRecord))
            self._binned.delete(entry.id)

    def restore(self) -> None:
        """Settle what an engine that was killed left half moved; call at the engine's start."""
        for entry in self._binned.find("kind", Kind.VOLUME):
            if os.path.isdir(self._layout.binned_volume(entry.id)):
                if entry.moving:
                    self._finish(entry)
            elif not entry.moving and self._is_without_record(entry.name):
                self._record_again(entry)
            else:  # it never left its place, or it was being deleted
                self._binned.delete(entry.id)
        self._delete_orphans()

    def _is_without_record(self, name: str) -> bool:
        return os.path.isdir(self._place(name)) and not self._volumes.has(name)

    def _delete_orphans(self) -> None:
        if not os.path.isdir(self._layout.volumes):
            return
        entries = self._binned.find("kind", Kind.VOLUME)
        known = {os.path.basename(self._layout.binned_volume(entry.id)) for entry in entries}
        for name in os.listdir(self._layout.volumes):
            if name.startswith(BIN_PREFIX) and name not in known:
                log.warning("the removed volume in %s belongs to no entry of the bin", name)
                shutil.rmtree(os.path.join(self._layout.volumes, name), ignore_errors=True)

    def _place(self, name: str) -> str:
        return os.path.dirname(self._layout.volume_data(name))
