"""Packing of a rotated log in the background: ``NAME.1`` becomes ``NAME.1.gz``.

The packed file names the inode of the original in its header's comment, so that a reader who was
in the middle of the original knows which file it was.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib

_BLOCK_BYTES = 256 * 1024
_COMMENT_FLAG = 0x10  # RFC 1952, section 2.3.1


class Compression:
    """Packs one file in a thread. ``wait`` before the file is renamed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        # A full disk, or a container removed in this moment: the plain file is as good.
        with contextlib.suppress(OSError):
            pack(self._path)


def pack(path: str) -> None:
    """Replace ``path`` by ``path.gz``. Raises ``OSError``, and then leaves ``path``."""
    temporary = f"{path}.gz.tmp"
    try:
        with open(path, "rb") as source, open(temporary, "wb") as target:
            os.fchmod(target.fileno(), 0o640)
            comment = b"inode=%d\0" % os.fstat(source.fileno()).st_ino
            target.write(b"\x1f\x8b\x08" + bytes((_COMMENT_FLAG,)) + bytes(5) + b"\xff" + comment)
            packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            checksum = size = 0
            while block := source.read(_BLOCK_BYTES):
                checksum = zlib.crc32(block, checksum)
                size += len(block)
                target.write(packer.compress(block))
            target.write(packer.flush() + struct.pack("<II", checksum, size & 0xFFFFFFFF))
        os.replace(temporary, f"{path}.gz")
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    os.unlink(path)
