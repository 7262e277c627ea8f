"""The disk that holds the engine's data: how large, how full, and what is kept for the engine."""

from __future__ import annotations

import asyncio
import os

from deskd.kernel.files import sync_file_system
from deskd.store.reserve import Reserve

LOOK_S = 10.0


class DiskUse:
    """Tells about the file system below the data root. ``start`` begins to take the ``reserve``
    back whenever there is room again, until ``close``."""

    def __init__(self, data_root: str, reserve: Reserve) -> None:
        self._data_root = data_root
        self._reserve = reserve
        self._keeping: asyncio.Task[None] | None = None

    async def usage(self, *, settle: bool = False) -> dict[str, int | bool]:
        """Return the body of ``GET /desk/disk``, in bytes. ``settle`` first brings all that was
        written and deleted to the disk, which a file system with discards then gives back."""
        if settle:
            await asyncio.to_thread(sync_file_system, self._data_root)
        found = await asyncio.to_thread(os.statvfs, self._data_root)
        unit, held = found.f_frsize, self._reserve.held_bytes
        return {
            "Total": found.f_blocks * unit,
            "Used": (found.f_blocks - found.f_bfree) * unit - held,
            "Available": found.f_bavail * unit,
            "Reserve": (found.f_bfree - found.f_bavail) * unit + held,
            "Full": await asyncio.to_thread(lambda: self._reserve.is_full),
        }

    def start(self) -> None:
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def _keep(self) -> None:
        # What a container deletes frees the disk without anybody telling the engine.
        while True:
            await asyncio.sleep(LOOK_S)
            if self._reserve.in_use:
                await asyncio.to_thread(self._reserve.restore)
