"""Disk files with holes: made, copied and read without what nobody has written.

Holes are found with SEEK_DATA and SEEK_HOLE, lseek(2); where the system has none, a file counts as
one piece and its zeros are left out while it is copied.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 512  # of st_blocks, stat(2)
_ZEROS = bytes(PIECE_BYTES)
_FICLONE = 0x40049409  # ioctl_ficlone(2)


def make_sparse(file: Path, size_bytes: int) -> None:
    """Make a file of zeros that takes no room on the host until the guest writes to it."""
    import subprocess

    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.close(descriptor)
    if sys.platform == "win32":
        # NTFS allocates a grown file unless it is marked first.
        subprocess.run(["fsutil", "sparse", "setflag", str(file)], check=True, timeout=30)
    os.truncate(file, size_bytes)


def host_bytes(file: Path) -> int:
    """Return the room that a file takes on this computer's disk; 0 where there is none. What a
    symbolic link leads to does not count."""
    try:
        found = file.lstat()
    except FileNotFoundError:
        return 0
    return found.st_blocks * _BLOCK_BYTES if hasattr(found, "st_blocks") else found.st_size


def extents(file: Path) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each piece of the file that holds data."""
    size_bytes = file.stat().st_size
    if sys.platform == "win32":
        if size_bytes:
            yield 0, size_bytes
        return
    with file.open("rb", buffering=0) as stream:
        end = 0
        while end < size_bytes:
            try:
                start = os.lseek(stream.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # nothing but a hole up to the end
                raise
            end = os.lseek(stream.fileno(), start, os.SEEK_HOLE)
            yield start, end - start


def pieces(stream: IO[bytes], offset: int, length: int) -> Iterator[tuple[int, bytes]]:
    """Yield an extent in pieces with their offsets."""
    stream.seek(offset)
    end = offset + length
    while offset < end:
        data = stream.read(min(PIECE_BYTES, end - offset))
        if not data:
            return
        yield offset, data
        offset += len(data)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file that nobody writes to; ``target`` must not exist, and is on disk afterwards.

    Where the file system shares blocks between files that takes no room and no time. Raises
    ``OSError``; then ``target`` is gone again.
    """
    make_sparse(target, source.stat().st_size)
    try:
        with source.open("rb") as reading, target.open("r+b") as writing:
            if not _shared(reading, writing):
                for offset, length in extents(source):
                    for position, data in pieces(reading, offset, length):
                        if data != _ZEROS[: len(data)]:
                            writing.seek(position)
                            writing.write(data)
            writing.flush()
            os.fsync(writing.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _shared(reading: IO[bytes], writing: IO[bytes]) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
        return True
    return False
