"""The disk that holds the engine's data: how large, how full, and what is kept for the engine."""

from __future__ import annotations

import asyncio
import os


class DiskUse:
    """Tells about the file system below the data root."""

    def __init__(self, data_root: str) -> None:
        self._data_root = data_root

    async def usage(self) -> dict[str, int]:
        """Return the body of ``GET /desk/disk``, in bytes."""
        found = await asyncio.to_thread(os.statvfs, self._data_root)
        unit = found.f_frsize
        return {
            "Total": found.f_blocks * unit,
            "Used": (found.f_blocks - found.f_bfree) * unit,
            "Available": found.f_bavail * unit,
            "Reserve": (found.f_bfree - found.f_bavail) * unit,
        }
