"""The mounts of volumes with options: made for the first that uses one, gone with the last."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from deskd.errors import DeskdError
from deskd.kernel import mount_table
from deskd.layout import DataRoot
from deskd.services.ports import Runtime

log = logging.getLogger(__name__)


class VolumeMounts:
    """Knows who holds which volume. The caller lets one method at a time work on a volume."""

    def __init__(self, runtime: Runtime, layout: DataRoot) -> None:
        self._runtime = runtime
        self._layout = layout
        self._holders: dict[str, set[str]] = {}

    def is_held(self, name: str, holder: str) -> bool:
        return holder in self._holders.get(name, ())

    async def restore(self, name: str, holders: set[str]) -> None:
        """Take over what an earlier engine mounted: for its ``holders``, or to unmount it."""
        if holders:
            self._holders[name] = set(holders)
        else:
            await self.unmount(name)

    async def hold(self, name: str, options: Mapping[str, str], holder: str) -> None:
        """Mount a volume where it is not mounted. Raises ``SystemFailure``, ``Unsupported``."""
        if not self._is_mounted(name):
            arguments = {
                "device": options.get("device", ""),
                "kind": options.get("type", ""),
                "options": options.get("o", ""),
                "target": self._layout.volume_data(name),
            }
            await self._runtime.run_job("mount_volume", arguments, ())
        self._holders.setdefault(name, set()).add(holder)

    async def release(self, name: str, holder: str) -> None:
        """Unmount a volume that nobody else holds."""
        holders = self._holders.get(name, set())
        holders.discard(holder)
        if holders:
            return
        self._holders.pop(name, None)
        try:
            await self.unmount(name)
        except DeskdError:
            log.exception("the volume %s cannot be unmounted now", name)

    async def unmount(self, name: str) -> None:
        """Unmount a volume that nobody holds; idempotent. Raises ``SystemFailure``."""
        if self._is_mounted(name):
            arguments = {"target": self._layout.volume_data(name)}
            await self._runtime.run_job("unmount_volume", arguments, ())

    def _is_mounted(self, name: str) -> bool:
        directory, base = os.path.split(self._layout.volume_data(name))
        target = os.path.join(os.path.realpath(directory), base)
        return any(found.target == target for found in mount_table.read())
