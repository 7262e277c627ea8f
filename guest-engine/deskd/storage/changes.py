"""What a container changed: an overlay's upper directory compared with the layers below it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from deskd.domain.id_mapping import NO_MAPPING, IdMapping
from deskd.images.unpack import OPAQUE_XATTR
from deskd.kernel.file_capabilities import FILE_XATTR, file_capabilities
from deskd.record import Record

_SECOND_NS = 1_000_000_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class ChangeKind(IntEnum):
    """``Kind`` of the API's ``FilesystemChange``."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


class Change(Record):
    """One changed path, absolute inside the container."""

    path: str
    kind: ChangeKind


class _Entry(NamedTuple):
    """Something on the disk, and where: a path that no symbolic link is on."""

    path: str
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


def changes_between(
    upper: str, lowers: Sequence[str], id_map: IdMapping = NO_MAPPING
) -> list[Change]:
    """Return the changes in ``upper`` against ``lowers`` (top first), sorted by path.

    A directory above a change counts as changed, as Docker shows it; a file or directory that
    was copied up without a difference does not count. The files of ``upper`` have the machine's
    IDs, those of ``lowers`` the container's; ``id_map`` tells which belong together.
    """
    changes: list[Change] = []
    fd = os.open(upper, _DIRECTORY)
    try:
        _walk(fd, list(lowers), "", changes, id_map, opaque=False)
    finally:
        os.close(fd)
    return sorted(changes, key=lambda change: change.path)


def _walk(
    directory_fd: int,
    lowers: list[str],
    path: str,
    changes: list[Change],
    id_map: IdMapping,
    *,
    opaque: bool,
) -> None:
    """Compare one directory with what the layers ``lowers`` show there; ``opaque`` says that it,
    or one above it, hides theirs.

    By descriptors and without following links: the container may change its files meanwhile.
    """
    with os.scandir(directory_fd) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        below = f"{path}/{name}"
        try:
            status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        before = _lookup(lowers, below)
        after = _Entry(f"/proc/self/fd/{directory_fd}/{name}", status)
        if _is_whiteout(status):
            if before is not None:
                changes.append(Change(below, ChangeKind.DELETED))
        elif not after.is_directory:
            if before is None:
                changes.append(Change(below, ChangeKind.ADDED))
            elif _differs(before, after, id_map):
                changes.append(Change(below, ChangeKind.MODIFIED))
        else:
            changes += _compare_directory(
                directory_fd, name, lowers, below, before, after, id_map, opaque=opaque
            )


def _compare_directory(
    parent_fd: int,
    name: str,
    lowers: list[str],
    path: str,
    before: _Entry | None,
    after: _Entry,
    id_map: IdMapping,
    *,
    opaque: bool,
) -> list[Change]:
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
    except (FileNotFoundError, NotADirectoryError):
        return []
    inside: list[Change] = []
    try:
        opaque = opaque or is_opaque(fd)
        was_directory = before is not None and before.is_directory
        if opaque and was_directory:
            inside += _hidden(fd, lowers, path)
        _walk(fd, lowers if was_directory else [], path, inside, id_map, opaque=opaque)
    finally:
        os.close(fd)
    if before is None:
        return [Change(path, ChangeKind.ADDED), *inside]
    if inside or _differs(before, after, id_map):
        return [Change(path, ChangeKind.MODIFIED), *inside]
    return inside


def _hidden(fd: int, lowers: list[str], path: str) -> list[Change]:
    """Return what an opaque directory hides and does not have itself."""
    names: set[str] = set()
    for lower in lowers:
        found = _lookup([lower], path)
        if found is not None and found.is_directory:
            names.update(os.listdir(found.path))
    own = set(os.listdir(fd))
    return [
        Change(f"{path}/{name}", ChangeKind.DELETED)
        for name in sorted(names - own)
        if _lookup(lowers, f"{path}/{name}") is not None
    ]


def _differs(before: _Entry, after: _Entry, id_map: IdMapping) -> bool:
    """Compare what Docker compares: kind, mode, owner, device; for all but directories size and
    time, too; for files their capabilities, whose change no time tells."""
    old, new = before.status, after.status
    owner = id_map.to_container(new.st_uid, new.st_gid)
    same = (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) == (
        new.st_mode,
        *owner,
        new.st_rdev,
    )
    if same and not after.is_directory:
        same = old.st_size == new.st_size and _is_same_time(old.st_mtime_ns, new.st_mtime_ns)
    if same and stat.S_ISREG(new.st_mode):
        same = _capabilities(before) == _capabilities(after)
    return not same


def _is_same_time(first_ns: int, second_ns: int) -> bool:
    """Archives keep whole seconds: a time without a fraction is any in its second."""
    if first_ns % _SECOND_NS and second_ns % _SECOND_NS:
        return first_ns == second_ns
    return first_ns // _SECOND_NS == second_ns // _SECOND_NS


def _capabilities(entry: _Entry) -> bytes:
    """Return a file's capabilities without the user namespace that they hold in."""
    try:
        return file_capabilities(os.getxattr(entry.path, FILE_XATTR, follow_symlinks=False))
    except OSError:
        return b""  # no such attribute, or no such file any more


def _lookup(lowers: Sequence[str], path: str) -> _Entry | None:
    """Return what the layers show at ``path``: the topmost that has it, unless it is a whiteout
    or an upper layer's opaque directory or whiteout hides it."""
    parts = path.strip("/").split("/")
    for lower in lowers:
        hidden = False
        place = lower
        for position, part in enumerate(parts):
            place = f"{place}/{part}"
            try:
                status = Path(place).lstat()
            except (FileNotFoundError, NotADirectoryError):
                break
            if _is_whiteout(status):
                return None
            if position == len(parts) - 1:
                return _Entry(place, status)
            if not stat.S_ISDIR(status.st_mode):
                return None  # a file in the place of a directory hides what is below
            hidden = hidden or is_opaque(place)
        if hidden:
            return None
    return None


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory: str | int) -> bool:
    """Say whether this directory (a path or a descriptor) hides all below it in an overlay."""
    try:
        return os.getxattr(directory, OPAQUE_XATTR) == b"y"
    except OSError:
        return False  # no such attribute
