"""The free room of file systems. Loads next to nothing: an engine asks before its first answer."""

from __future__ import annotations

import os


def writable_bytes(path: str) -> int:
    """Return how much root can still write to the file system of ``path``."""
    found = os.statvfs(path)
    reserved = _reserved_blocks(path)
    if reserved is None:
        return found.f_bavail * found.f_frsize
    return max(0, found.f_bfree - reserved) * found.f_frsize


def _reserved_blocks(path: str) -> int | None:
    """Return the free blocks that ext4 keeps for itself, from root, too; ``None`` for others.

    They count as free in statvfs(3). What ``mke2fs -m`` sets aside is root's, as containers are.
    """
    device = os.stat(path).st_dev
    node = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    try:
        with open(f"/sys/fs/ext4/{os.path.basename(node)}/reserved_clusters") as file:
            return int(file.read())
    except FileNotFoundError:
        return None
