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
