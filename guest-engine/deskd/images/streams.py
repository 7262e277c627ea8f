"""Byte streams of archives: decompression by magic, and a forward-only reader that hashes."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Protocol, cast

from deskd import errors

CHUNK_BYTES = 256 * 1024
HEADER_LIMIT_BYTES = 1024 * 1024
"""The longest header of one entry with all its extensions (Go's archive/tar has the same)."""

_DECODER_LIMIT_BYTES = 160 * 1024 * 1024
"""What xz may take to decompress: twice of what its highest level asks for. zstd's limit, its
library's own, is about the same."""


class ByteReader(Protocol):
    """Anything with a blocking ``read`` that returns ``b""`` at the end."""

    def read(self, size: int = -1, /) -> bytes: ...


class _Prefixed(io.RawIOBase):
    """A reader whose first bytes were taken off to look at them."""

    def __init__(self, head: bytes, rest: ByteReader) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def read_exactly(source: ByteReader, size: int) -> bytes:
    """Read ``size`` bytes, fewer only at the end."""
    parts: list[bytes] = []
    while size > 0:
        part = source.read(size)
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _XzReader:
    """Decompresses xz, of which one file may hold several streams. ``lzma``'s own reader would
    take as much memory as the file asks for, which may be 4 GiB."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self._decoder = self._new_decoder()

    @staticmethod
    def _new_decoder() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DECODER_LIMIT_BYTES)

    def read(self, size: int = -1, /) -> bytes:
        while True:
            data = b""
            if self._decoder.eof:
                rest = self._decoder.unused_data or self._raw.read(CHUNK_BYTES)
                while rest and not (data := rest.lstrip(b"\0")):  # padding between streams
                    rest = self._raw.read(CHUNK_BYTES)
                if not rest:
                    return b""
                self._decoder = self._new_decoder()
            elif self._decoder.needs_input and not (data := self._raw.read(CHUNK_BYTES)):
                raise EOFError("the xz data ended before its end mark")
            if found := self._decoder.decompress(data, size):
                return found


def _open_zstd(raw: io.BufferedReader) -> ByteReader:
    try:
        import zstandard
    except ImportError as error:
        raise errors.Unsupported(
            "the archive is compressed with zstd, for which this engine lacks the Python package "
            "zstandard: decompress it first (`zstd -d`)"
        ) from error
    reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return cast(ByteReader, reader)


def _open_gzip(raw: io.BufferedReader) -> ByteReader:
    from isal import igzip

    reader = igzip.IGzipFile(fileobj=raw, mode="rb")  # type: ignore[no-untyped-call]
    return cast(ByteReader, reader)


MAGIC_LENGTH = 6
_FORMATS: tuple[tuple[bytes, Callable[[io.BufferedReader], ByteReader]], ...] = (
    (b"\x1f\x8b", _open_gzip),
    (b"\xfd7zXZ\x00", _XzReader),
    (b"BZh", bz2.BZ2File),
    (b"\x28\xb5\x2f\xfd", _open_zstd),
)


def is_compressed(head: bytes) -> bool:
    """Say whether bytes that begin with ``head`` are in one of the known compressed formats."""
    return any(head.startswith(magic) for magic, _ in _FORMATS)


def decompressed(source: ByteReader) -> ByteReader:
    """Return the plain bytes of a source that may be gzip, xz, bzip2, zstd or not compressed."""
    head = read_exactly(source, MAGIC_LENGTH)
    raw = io.BufferedReader(cast(Any, _Prefixed(head, source)), CHUNK_BYTES)
    for magic, opener in _FORMATS:
        if head.startswith(magic):
            return opener(raw)
    return cast(ByteReader, raw)


DECOMPRESSION_ERRORS = (zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)
"""What the decompressors raise for damaged input (zstandard's error is a plain Exception)."""


def is_damage(error: BaseException) -> bool:
    """Say whether this is a decompressor's complaint about its input."""
    if isinstance(error, DECOMPRESSION_ERRORS):
        return True
    if isinstance(error, OSError) and error.errno is None:
        return True  # bz2: "Invalid data stream"
    # Classes of modules that are loaded on demand; isal's name their module without its package.
    return type(error).__module__.startswith(("zstandard", "isal", "igzip"))


class ForwardReader:
    """A reader that only moves forward, hashes all it passes unless ``hashed`` is false, and can
    show it to a recorder.

    It has the part of a file's interface that ``tarfile`` needs (``tell``, ``seek`` ahead,
    ``read``). ``recorder`` gets each byte except those that are read by ``read_content``.
    """

    def __init__(
        self,
        source: ByteReader,
        recorder: Callable[[bytes], None] | None = None,
        *,
        hashed: bool = True,
    ) -> None:
        self._source = source
        self._hash = hashlib.sha256() if hashed else None
        self._ahead = b""  # read and hashed in large pieces, given out from ``_ahead_at`` on
        self._ahead_at = 0
        self._position = 0
        self._recorder = recorder
        self._header_bytes = 0
        self.last_block = b""

    @property
    def hex_digest(self) -> str:
        """The digest of everything, once that was read to its end."""
        assert self._hash is not None, "this reader does not hash"
        return self._hash.hexdigest()

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0 or position < self._position:
            raise OSError(f"cannot seek to {position} from {self._position} in a stream")
        while self._position < position:
            if not self._pass(min(CHUNK_BYTES, position - self._position)):
                break
        return self._position

    def begin_entry(self) -> None:
        """Say that what is read next is another entry's header."""
        self._header_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """Read a part of an entry's header, which may not be endless: it is kept in memory."""
        self._header_bytes += size
        if size < 0 or self._header_bytes > HEADER_LIMIT_BYTES:
            raise OSError("an entry's header is too long")
        self.last_block = self._pass(size)
        return self.last_block

    def _pass(self, size: int) -> bytes:
        data = self.read_content(size)
        if self._recorder and data:
            self._recorder(data)
        return data

    def read_content(self, size: int) -> bytes:
        """Read like ``read``, hidden from the recorder."""
        end = self._ahead_at + size
        if end <= len(self._ahead):
            data = self._ahead[self._ahead_at : end]
            self._ahead_at = end
        else:
            data = self._beyond(size)
        self._position += len(data)
        return data

    def _beyond(self, size: int) -> bytes:
        """Return ``size`` bytes of which not all were read yet; fewer only at the end."""
        parts = [self._ahead[self._ahead_at :]]
        missing = size - len(parts[0])
        piece = b""
        while missing > 0:
            piece = self._source.read(CHUNK_BYTES)
            if not piece:
                missing = 0
            elif self._hash is not None:
                self._hash.update(piece)
            parts.append(piece[:missing])
            missing, self._ahead_at = missing - len(parts[-1]), len(parts[-1])
        self._ahead = piece
        return b"".join(parts)

    def drain(self) -> None:
        """Read to the end: what follows a tar's last entry belongs to the hash, too."""
        while self._pass(CHUNK_BYTES):
            pass
