"""Waiting for the disk before a client is told that something is there, or gone.

A loss of power, or of the virtual machine, takes what the disk has not got. Starts and stops do not
wait: after it nothing runs.
"""

from __future__ import annotations

import asyncio

from deskd.store.database import Database


class Durability:
    """Brings to the disk what the database committed; all who wait at one time share one flush."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def settle(self) -> None:
        """Return when all that was committed before the call is on the disk."""
        # A flush that has begun may have missed it.
        if self._next is None:
            self._next = asyncio.create_task(self._flush(self._running))
        await asyncio.shield(self._next)

    async def _flush(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        await asyncio.to_thread(self._database.flush)
