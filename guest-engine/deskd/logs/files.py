"""One file of a log, plain or packed, as readers of rotated logs need it."""

from __future__ import annotations

import contextlib
import os
from typing import BinaryIO

_COMMENT_START, _COMMENT_MAX_BYTES = 10, 64
_HEAD_BYTES, _HEAD_PACKED_BYTES = 256, 4096


class LogFile:
    """An open file of a log. A packed one is unpacked to a nameless file at its first use.

    It stays open, so that no other file gets its inode while this object lives.
    """

    def __init__(self, file: BinaryIO, *, packed: bool) -> None:
        self._file = file
        self._unpacked: BinaryIO | None = None
        self.packed = packed
        self.inode = os.fstat(file.fileno()).st_ino
        self._original_inode = _packed_inode(file) if packed else self.inode

    def is_same(self, other: LogFile) -> bool:
        """Say whether both are one file of the log, before or after its packing.

        The original of a packed file is gone, and a newer file may have its inode: the first lines
        tell them apart.
        """
        if self.packed == other.packed:
            return self.inode == other.inode
        return self._original_inode == other._original_inode and self.head() == other.head()

    def _plain(self) -> BinaryIO:
        if not self.packed:
            return self._file
        if self._unpacked is None:
            import gzip
            import shutil
            import tempfile

            plain = tempfile.TemporaryFile()  # noqa: SIM115 (kept by this object)
            with gzip.GzipFile(fileobj=self._file) as source:
                shutil.copyfileobj(source, plain)
            plain.seek(0)
            self._unpacked = plain
        return self._unpacked

    def head(self) -> bytes:
        """Return the file's first bytes, which have the time of its first line in them."""
        start = os.pread(self._file.fileno(), _HEAD_PACKED_BYTES, 0)
        if not self.packed:
            return start[:_HEAD_BYTES]
        import zlib

        return zlib.decompressobj(wbits=31).decompress(start, _HEAD_BYTES)

    def read(self, size: int = -1) -> bytes:
        return self._plain().read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._plain().seek(offset, whence)

    def tell(self) -> int:
        return self._plain().tell()

    def close(self) -> None:
        """Close; idempotent."""
        self._file.close()
        if self._unpacked is not None:
            self._unpacked.close()


def _packed_inode(file: BinaryIO) -> int:
    head = file.read(_COMMENT_START + _COMMENT_MAX_BYTES)
    file.seek(0)
    name, _, number = head[_COMMENT_START:].partition(b"\0")[0].partition(b"=")
    return int(number) if name == b"inode" and number.isdigit() else -1


def open_all(path: str) -> list[LogFile]:
    """Open the log's files, oldest first.

    The monitor may be renaming them, each to the next number and the oldest first. From the newest
    on, a file that moves is met twice and never missed, and a number that is free at a moment is
    not the end. A newer one that comes from behind is met in between: the files' order is that in
    which each was met last, since whatever has moved beyond this place is met once more.
    """
    files: list[LogFile] = []
    number = 0
    while number <= (highest := _highest_number(path)):
        while number <= highest:
            found = _open_one(f"{path}.{number}" if number else path)
            number += 1
            if found is None:
                continue
            known = next((file for file in files if file.is_same(found)), None)
            if known is not None:
                found.close()
                files.remove(known)
            files.append(known or found)
    return files[::-1]


def _highest_number(path: str) -> int:
    directory, name = os.path.split(path)
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return 0
    ends = (entry[len(name) + 1 :] for entry in entries if entry.startswith(f"{name}."))
    numbers = (end.removesuffix(".gz") for end in ends)
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _open_one(path: str) -> LogFile | None:
    for name, packed in ((path, False), (f"{path}.gz", True)):
        with contextlib.suppress(FileNotFoundError):
            return LogFile(open(name, "rb"), packed=packed)
    return None
