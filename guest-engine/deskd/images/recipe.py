"""How a layer's tar is made again, byte for byte, without keeping a second copy of its files.

While a layer is unpacked, every byte of its tar that is not a file's content is recorded
(headers, padding, the trailer); file contents are recorded as places in the unpacked layer. A
recipe is one zlib stream of segments:

====  ================================================================================
type  rest
====  ================================================================================
``R``  u32 length, bytes as they are
``F``  u32 entry number, u16 path length, path, u16 count, count x (u64 offset, u64 size)
====  ================================================================================

Numbers are big-endian. Where a later entry of the same tar replaced an earlier one, the earlier
object was moved to ``replaced/<number>``; the list of these replacements is kept beside the recipe.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from deskd import errors
from deskd.images.streams import CHUNK_BYTES
from deskd.kernel.mount import RESOLVE_IN_ROOT, openat2
from deskd.record import Record

RAW, FILE = b"R", b"F"
_COMPRESSION_LEVEL = 1
_FLUSH_BYTES = 64 * 1024
_MAXIMUM_REGIONS = 65535
_RAW_HEAD, _FILE_HEAD = struct.Struct(">I"), struct.Struct(">IH")
_COUNT, _REGION = struct.Struct(">H"), struct.Struct(">QQ")


class Replacement(Record):
    """Entry ``entry`` of the tar replaced ``path``; the old object is ``replaced/<number>``."""

    entry: int
    number: int
    path: str


class RecipeWriter:
    """Writes a recipe; ``raw`` is the recorder of a ``ForwardReader``."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("wb")  # noqa: SIM115  # closed by close or abandon
        self._compressor = zlib.compressobj(_COMPRESSION_LEVEL)
        self._raw = bytearray()
        self._segments = bytearray()

    def raw(self, data: bytes) -> None:
        """Record bytes as they are."""
        self._raw += data
        if len(self._raw) >= _FLUSH_BYTES:
            self._end_raw()
            self._flush()

    def file(self, entry: int, path: str, regions: Sequence[tuple[int, int]]) -> None:
        """Record that the content of ``regions`` (offset, size) of a file comes next."""
        self._end_raw()
        name = os.fsencode(path)
        for start in range(0, len(regions), _MAXIMUM_REGIONS):
            part = regions[start : start + _MAXIMUM_REGIONS]
            self._segments += FILE + _FILE_HEAD.pack(entry, len(name)) + name
            self._segments += _COUNT.pack(len(part))
            for offset, size in part:
                self._segments += _REGION.pack(offset, size)
        if len(self._segments) >= _FLUSH_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left; the file is complete afterwards."""
        try:
            self._end_raw()
            self._flush()
            self._file.write(self._compressor.flush())
        finally:
            self._file.close()

    def abandon(self) -> None:
        """Close without completing; idempotent."""
        # A full disk refuses what is still buffered, which nobody will read.
        with suppress(OSError):
            self._file.close()

    def _end_raw(self) -> None:
        if self._raw:
            self._segments += RAW + _RAW_HEAD.pack(len(self._raw))
            self._segments += self._raw
            self._raw.clear()

    def _flush(self) -> None:
        self._file.write(self._compressor.compress(self._segments))
        self._segments.clear()


class _Segments:
    """The uncompressed bytes of a recipe, in exact pieces."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = zlib.decompressobj()
        self._buffer = b""
        self._position = 0

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes; fewer only at the end."""
        end = self._position + size
        if end > len(self._buffer):
            self._fill(size)
            end = size
        taken = self._buffer[self._position : end]
        self._position += len(taken)
        return taken

    def _fill(self, size: int) -> None:
        parts = [self._buffer[self._position :]]
        left = size - len(parts[0])
        while left > 0:
            packed = self._decompressor.unconsumed_tail or self._file.read(_FLUSH_BYTES)
            if not packed:
                break
            parts.append(self._decompressor.decompress(packed, _FLUSH_BYTES))
            left -= len(parts[-1])
        self._buffer, self._position = b"".join(parts), 0

    def need(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))


class Part(NamedTuple):
    """One segment of a recipe: bytes as they are, or the regions of a file."""

    raw: bytes = b""
    entry: int = 0
    path: str = ""
    regions: tuple[tuple[int, int], ...] = ()


def read_parts(recipe: str) -> Iterator[Part]:
    """Yield a recipe's segments; raises ``DataLoss`` where it is damaged."""
    try:
        with Path(recipe).open("rb") as file:
            segments = _Segments(file)
            while kind := segments.take(1):
                if kind == RAW:
                    (size,) = segments.need(_RAW_HEAD)
                    yield Part(segments.take(size))
                elif kind == FILE:
                    entry, length = segments.need(_FILE_HEAD)
                    path = os.fsdecode(segments.take(length))
                    (count,) = segments.need(_COUNT)
                    regions = [segments.need(_REGION) for _ in range(count)]
                    yield Part(b"", entry, path, tuple((o, size) for o, size in regions))
                else:
                    raise errors.DataLoss(
                        f"the layer recipe {recipe} is damaged: pull or load the image again"
                    )
    except (OSError, zlib.error, struct.error) as error:
        raise errors.DataLoss(
            f"the layer recipe {recipe} is damaged ({error}): pull or load the image again"
        ) from error


def replay(
    recipe: str, layer: str, replaced: Sequence[Replacement], replaced_root: str
) -> Iterator[bytes]:
    """Yield the tar of the layer that is unpacked at ``layer``, in pieces of ``CHUNK_BYTES`` and
    somewhat more.

    Raises ``DataLoss`` where the recipe or a file that it names is damaged. The caller compares
    the hash with the diff ID.
    """
    # Threads that hash and compress small pieces wait for the interpreter most of their time.
    parts: list[bytes] = []
    size_bytes = 0
    for part in _parts(recipe, layer, replaced, replaced_root):
        parts.append(part)
        size_bytes += len(part)
        if size_bytes >= CHUNK_BYTES:
            yield b"".join(parts)
            parts.clear()
            size_bytes = 0
    if parts:
        yield b"".join(parts)


def _parts(
    recipe: str, layer: str, replaced: Sequence[Replacement], replaced_root: str
) -> Iterator[bytes]:
    root_fd = os.open(layer, os.O_PATH | os.O_DIRECTORY)
    try:
        for part in read_parts(recipe):
            if part.path:
                yield from _content(
                    partial(open_file, root_fd, part.entry, part.path, replaced, replaced_root),
                    part.path,
                    part.regions,
                )
            else:
                yield part.raw
    finally:
        os.close(root_fd)


def open_file(
    root_fd: int,
    entry: int,
    path: str,
    replaced: Sequence[Replacement],
    replaced_root: str,
    flags: int = os.O_RDONLY,
) -> int:
    """Open the file that entry ``entry`` of the tar put at ``path``, wherever it is now."""
    for replacement in replaced:
        if replacement.entry > entry and (path + "/").startswith(replacement.path + "/"):
            rest = path[len(replacement.path) :]
            return os.open(f"{replaced_root}/{replacement.number}{rest}", flags | os.O_NOFOLLOW)
    return openat2(root_fd, path, flags | os.O_NOFOLLOW, RESOLVE_IN_ROOT)


def _content(
    opener: Callable[[], int], path: str, regions: Sequence[tuple[int, ...]]
) -> Iterator[bytes]:
    try:
        fd = opener()
    except OSError as error:
        raise errors.DataLoss(
            f"the layer's file {path!r} cannot be read ({error.strerror}): pull or load the image "
            "again"
        ) from error
    try:
        for offset, size in regions:
            position, end = offset, offset + size
            while position < end:
                data = os.pread(fd, min(CHUNK_BYTES, end - position), position)
                if not data:
                    raise errors.DataLoss(
                        f"the layer's file {path!r} is too short: pull or load the image again"
                    )
                position += len(data)
                yield data
    finally:
        os.close(fd)
