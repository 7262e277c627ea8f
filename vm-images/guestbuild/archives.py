"""Entries of tars whose bytes are the same at every build."""

from __future__ import annotations

import io
import tarfile


def add(
    archive: tarfile.TarFile,
    name: str,
    *,
    mode: int,
    mtime_s: int,
    kind: bytes = tarfile.REGTYPE,
    data: bytes = b"",
    target: str = "",
) -> None:
    """Write one entry of root's: a file with its ``data``, a link to ``target``, or a directory."""
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.linkname = kind, mode, target
    member.mtime, member.size = mtime_s, len(data)
    archive.addfile(member, io.BytesIO(data))
