"""Volumes as the database keeps them."""

from __future__ import annotations

import msgspec

from deskd.domain.volume_options import needs_mount

ANONYMOUS_LABEL = "com.docker.volume.anonymous"


class VolumeRecord(msgspec.Struct, kw_only=True, frozen=True):
    """A volume of the database. ``removing``: its files are being deleted; an engine that finds
    it so at its start goes on with that."""

    name: str
    created_ns: int
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None
    removing: bool = False

    @property
    def anonymous(self) -> bool:
        return ANONYMOUS_LABEL in (self.labels or {})

    @property
    def needs_mount(self) -> bool:
        """True where the data is a file system that is mounted while a container uses it."""
        return needs_mount(self.options)
