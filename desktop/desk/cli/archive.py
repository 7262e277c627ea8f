"""Tar archives on this computer's side of ``desk cp``."""

from __future__ import annotations

import os
import queue
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from desk.engine.streams import ByteStream
from desk.errors import Conflict, DeskError, NotFound

_PIECE_BYTES = 256 * 1024


class ArchiveSource(NamedTuple):
    """What is to be packed. ``content_only`` leaves the directory's own name out."""

    path: Path
    is_directory: bool
    content_only: bool
    follow_link: bool
    size_bytes: int


def local_archive(path: Path, text: str, *, follow_link: bool) -> ArchiveSource:
    """Look at a file or directory; ``NotFound`` names one that is not there."""
    content_only = text in (".", "./") or text.endswith(("/.", os.sep + "."))
    if not os.path.lexists(path):
        raise NotFound(f"{text} does not exist on this computer")
    is_directory = path.is_dir() and (follow_link or content_only or not path.is_symlink())
    if is_directory and not path.name:
        path = path.absolute()
    size_bytes = (
        sum(item.lstat().st_size for item in path.rglob("*") if not item.is_dir())
        if is_directory
        else path.lstat().st_size
    )
    return ArchiveSource(path, is_directory, content_only, follow_link, size_bytes)


def pack(source: ArchiveSource, name: str) -> Iterator[bytes]:
    """Yield a tar archive of the source under ``name``; an empty name packs the content."""
    pipe: queue.Queue[bytes | BaseException | None] = queue.Queue(maxsize=8)
    stopped = threading.Event()

    writer: Any = _QueueWriter(pipe, stopped)

    def write() -> None:
        try:
            with tarfile.open(
                fileobj=writer,
                mode="w|",
                bufsize=_PIECE_BYTES,
                format=tarfile.PAX_FORMAT,
                dereference=False,
            ) as archive:
                path = Path(os.path.realpath(source.path)) if source.follow_link else source.path
                archive.add(path, name or ".", filter=_by_number)
        except _Stopped:
            return
        except BaseException as error:  # noqa: BLE001 - raised again by the reader
            pipe.put(error)
        else:
            pipe.put(None)

    thread = threading.Thread(target=write, name="pack", daemon=True)
    thread.start()
    try:
        while (item := pipe.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join(5)


def _by_number(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Owners go by their numbers, as Docker's do: names here mean others in the container."""
    member.uname = member.gname = ""
    return member


class _Stopped(Exception):
    pass


class _QueueWriter:
    """The end of a pipe that ``tarfile`` writes to."""

    def __init__(
        self, pipe: queue.Queue[bytes | BaseException | None], stopped: threading.Event
    ) -> None:
        self._pipe = pipe
        self._stopped = stopped

    def write(self, data: bytes) -> int:
        while True:
            if self._stopped.is_set():
                raise _Stopped
            try:
                self._pipe.put(bytes(data), timeout=0.2)
            except queue.Full:
                continue
            return len(data)


def unpack(
    stream: ByteStream,
    target: Path,
    *,
    ends_with_slash: bool,
    is_directory: bool,
    content_only: bool,
) -> int:
    """Unpack a container's archive as ``cp`` places it and return the bytes written.

    The archive comes from a container, so nothing in it may leave the target, and links are
    followed nowhere. The checks are our own: Debian 12's Python has no filters of ``tarfile``.
    """
    if not target.is_dir():
        if target.exists() and is_directory:
            raise Conflict(f"cannot copy a directory onto the file {target}")
        if not is_directory and ends_with_slash:
            raise NotFound(f"directory {target} does not exist", hint="Make it first.")
        if not target.parent.is_dir():
            raise NotFound(f"directory {target.parent} does not exist", hint="Make it first.")
        base, rename = target.parent, target.name
    else:
        base, rename = target, None
    place = _Placing(rename, content_only=content_only)
    written = 0
    source: Any = stream
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            for member in archive:
                names = place(member.name)
                if member.islnk():
                    member.linkname = "/".join(place(member.linkname))
                if names:
                    written += _extract(archive, member, base, names)
    except tarfile.TarError as error:
        raise DeskError(
            f"the archive from the container is damaged: {error}",
            hint="The connection may have been cut; try again.",
        ) from error
    return written


class _Placing:
    """Gives the names in an archive their place below the target."""

    def __init__(self, rename: str | None, *, content_only: bool) -> None:
        self._rename = rename
        self._content_only = content_only
        self._root: str | None = None

    def __call__(self, name: str) -> list[str]:
        parts = _parts(name)
        if self._root is None:  # the first is what was asked for; "." for a content only
            self._root = parts[0] if parts else ""
        inner = parts[1:] if parts[:1] == [self._root] else parts
        if self._rename is not None:
            return [self._rename, *inner]
        return inner if self._content_only else parts


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _extract(
    archive: tarfile.TarFile, member: tarfile.TarInfo, base: Path, names: list[str]
) -> int:
    member.name = "/".join(names)
    if member.islnk():
        _refuse_escape(base, _parts(member.linkname))
    path = base.joinpath(*names)
    _refuse_escape(base, names)
    if member.isdir() and path.is_dir() and not path.is_symlink():
        return 0
    if os.path.lexists(path) and not member.isdir():
        if path.is_dir() and not path.is_symlink():
            raise Conflict(f"cannot replace the directory {path} by a file")
        path.unlink()
    elif os.path.lexists(path):
        raise Conflict(f"cannot replace the file {path} by a directory")
    if _posix():
        member.uid, member.gid = os.getuid(), os.getgid()
        member.uname = member.gname = ""
    if not member.issym():
        # A symbolic link may point anywhere, as in the container: nothing is written through it.
        _refuse_outside(base, path)
        member.mode &= 0o777
    archive.extract(member, base, numeric_owner=True, **_CHECKED_ALREADY)
    return member.size if member.isreg() else 0


_CHECKED_ALREADY: dict[str, Any] = (
    {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
)


def _posix() -> bool:
    return hasattr(os, "getuid")


def _refuse_escape(base: Path, names: list[str]) -> None:
    """Refuse ``..`` and any parent that is a symbolic link: a member before may have made it."""
    if ".." in names:
        raise DeskError(f"refused to unpack {'/'.join(names)}: it leaves the target")
    parent = base
    for name in names[:-1]:
        parent = parent / name
        if parent.is_symlink():
            raise DeskError(f"refused to unpack {'/'.join(names)}: {parent} is a symbolic link")


def _refuse_outside(base: Path, path: Path) -> None:
    """Refuse a path that is elsewhere by another system's rules, such as a drive's letter."""
    root = os.path.realpath(base)
    try:
        inside = os.path.commonpath([root, os.path.realpath(path)]) == root
    except ValueError:  # another drive
        inside = False
    if not inside:
        raise DeskError(f"refused to unpack {path}: it leaves the target")
