"""Mounts as data: storage and services return these, one executor in the launcher performs them."""

from __future__ import annotations

from typing import Literal

from deskd.domain.id_mapping import IdRanges
from deskd.record import Record

MountKind = Literal["overlay", "bind", "tmpfs", "proc", "sysfs", "cgroup", "mqueue", "devpts"]
Propagation = Literal["", "private", "rprivate", "shared", "rshared", "slave", "rslave"]


class MountStep(Record):
    """One mount inside the container's new mount namespace.

    ``target`` is an absolute path inside the container ("/" is the root itself) and is resolved
    without ever leaving the container's root. ``source`` is a path on the engine's side (bind) or
    a label. ``data`` is the option string (``lowerdir=…,upperdir=…``). For an overlay,
    ``source`` is the directory that relative names in ``data`` start from: the executor changes
    to it before it mounts, because a mount's options must fit one page (4096 bytes, mount(2)) and
    128 layers do so only by short relative names.
    ``subpath`` is a part of a bind's ``source`` that is mounted alone: symbolic links on the way
    count from ``source`` and cannot lead out of it.
    ``create`` makes the mount point if it is missing, as a file when the source is one.
    With ``uid_map`` and ``gid_map`` an overlay's layers (all below ``source``) are shown with
    their owners mapped: those of the files on disk count as IDs inside.
    """

    kind: MountKind
    target: str
    source: str = ""
    data: str = ""
    read_only: bool = False
    recursive: bool = True
    recursive_read_only: bool = False
    propagation: Propagation = ""
    flags: tuple[str, ...] = ()  # "nosuid", "nodev", "noexec", "relatime", …
    create: bool = True
    uid_map: IdRanges = ()
    gid_map: IdRanges = ()
    subpath: str = ""

    def describe(self) -> str:
        """Say what the step does, for logs and errors."""
        where = f"{self.source} on {self.target}" if self.source else self.target
        return f"{self.kind} {where}{' (read-only)' if self.read_only else ''}"
