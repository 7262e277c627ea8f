"""Writing files compressed, as their names' endings say."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
from collections.abc import Iterator
from pathlib import PurePath
from typing import IO, Any, BinaryIO, cast

_FAST = 1
"""Archives of programs get little smaller by the levels above, which take many times as long."""

_SHORT = {".tgz": ".gz", ".txz": ".xz", ".tbz2": ".bz2", ".tzst": ".zst"}


@contextlib.contextmanager
def compressed(raw: BinaryIO, name: str) -> Iterator[IO[bytes]]:
    """Yield what writes to ``raw`` in the format that ``name`` ends with (.gz, .xz, .bz2, .zst and
    their short forms such as .tgz), or as it is where the name ends otherwise."""
    suffix = PurePath(name).suffix.lower()
    writer = _writer(raw, _SHORT.get(suffix, suffix))
    if writer is None:
        yield raw
        return
    with writer as target:
        yield cast(IO[bytes], target)


def _writer(raw: BinaryIO, suffix: str) -> Any:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=_FAST, filename="", mtime=0)
    if suffix == ".xz":
        return lzma.LZMAFile(raw, "wb", preset=_FAST)
    if suffix == ".bz2":
        return bz2.BZ2File(raw, "wb")
    if suffix == ".zst":
        import zstandard

        return zstandard.ZstdCompressor().stream_writer(raw, closefd=False)
    return None
