"""Who a program runs as: Docker's ``user[:group]`` looked up in the container's own files.

Formats: passwd(5), group(5). Runs after the container's root has become "/".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from deskd.record import Record

MAX_FILE_BYTES = 16 * 1024 * 1024
_MAX_ID = 2**31 - 1


class LookupFailed(Exception):
    """The container's files do not know the user or group."""


class Identity(Record):
    """The IDs to take on; ``groups`` are supplementary and contain ``gid``."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def look_up(user: str, extra_groups: Sequence[str], root: str = "") -> Identity:
    """Find the identity; ``root`` is a prefix for tests. Raises ``LookupFailed``."""
    passwd, group_file = f"{root}/etc/passwd", f"{root}/etc/group"
    user_part, _, group_part = user.partition(":")
    name, uid, gid, home = _find_user(user_part or "0", passwd)
    groups: list[int] = []
    if group_part:
        gid = _find_group(group_part, group_file)
    elif name:
        groups = [
            number for _, number, members in _groups(group_file) if name in members.split(",")
        ]
    groups += [_find_group(item, group_file) for item in extra_groups]
    return Identity(uid, gid, tuple(dict.fromkeys((gid, *groups))), home or "/")


def _lines(path: str, count: int) -> Iterator[list[str]]:
    for line in _read(path).splitlines():
        parts = line.split(":")
        if len(parts) >= count and not line.startswith("#"):
            yield parts


def _read(path: str) -> str:
    """Read a file that the container's owner made: a pipe, a device or one of the kernel's files
    in its place must neither block nor be emptied. Only a plain file with a size is read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return ""  # as for an image without such a file: only numbers are known
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or not info.st_size:
            return ""
        if info.st_size > MAX_FILE_BYTES:
            raise LookupFailed(
                f"{path} has {info.st_size} bytes, at most {MAX_FILE_BYTES} are read; make it"
                " smaller"
            )
        return os.read(fd, info.st_size).decode("utf-8", errors="replace")
    finally:
        os.close(fd)


def _find_user(text: str, path: str) -> tuple[str, int, int, str]:
    numeric = _number(text)
    for parts in _lines(path, 6):
        uid, gid = _number(parts[2]), _number(parts[3])
        if uid is None or gid is None:
            continue
        if parts[0] == text or (numeric is not None and uid == numeric):
            return parts[0], uid, gid, parts[5]
    if numeric is None:
        raise LookupFailed(f"unable to find user {text}: no matching entries in passwd file")
    return "", numeric, 0, "/"


def _groups(path: str) -> Iterator[tuple[str, int, str]]:
    for parts in _lines(path, 4):
        number = _number(parts[2])
        if number is not None:
            yield parts[0], number, parts[3]


def _find_group(text: str, path: str) -> int:
    for name, number, _ in _groups(path):
        if name == text:
            return number
    found = _number(text)
    if found is None:
        raise LookupFailed(f"unable to find group {text}: no matching entries in group file")
    return found


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit():
        return None
    value = int(text)
    if value > _MAX_ID:
        raise LookupFailed(f"uids and gids must be in range 0-{_MAX_ID}")
    return value
