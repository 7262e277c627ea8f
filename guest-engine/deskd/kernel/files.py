"""Files: what Python's standard library lacks. See syncfs(2)."""

from __future__ import annotations

import ctypes
import os

from deskd.kernel.libc import check, libc

libc.syncfs.argtypes = (ctypes.c_int,)


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
