"""Files: what Python's standard library lacks. See syncfs(2) and fallocate(2)."""

from __future__ import annotations

import ctypes
import os

from deskd.kernel.libc import check, libc

libc.syncfs.argtypes = (ctypes.c_int,)
libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h


def sync_file_system(path: str) -> None:
    """Wait until all that was written to the file system of ``path`` is on its disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        check(libc.syncfs(fd), path)
    finally:
        os.close(fd)


def sync_directory(path: str) -> None:
    """Wait until the names in a directory are on its disk, those of renamed entries, too."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def allocate(fd: int, offset: int, length: int, *, keep_size: bool = False) -> None:
    """Have blocks of the disk for a part of a file; with ``keep_size`` also beyond its end.

    Raises ``OSError`` with EOPNOTSUPP where the file system cannot: unlike
    ``os.posix_fallocate``, this never writes zeros instead.
    """
    check(libc.fallocate64(fd, _KEEP_SIZE if keep_size else 0, offset, length))
