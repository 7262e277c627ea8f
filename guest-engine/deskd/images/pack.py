"""Writes tar streams of directories: layers of a commit, ``docker cp``, ``docker export``.

The walk goes by directory descriptors and never follows a symbolic link, so that a container that
changes its files meanwhile cannot lead it elsewhere. Entries are sorted; times are whole seconds
and user names are left out, as Docker writes them. The format is PAX.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator

from deskd.domain.id_mapping import NO_MAPPING, IdMapping
from deskd.images.streams import CHUNK_BYTES
from deskd.images.unpack import OPAQUE_WHITEOUT, OPAQUE_XATTR, WHITEOUT_PREFIX
from deskd.kernel.file_capabilities import FILE_XATTR, file_capabilities

END = bytes(2 * tarfile.BLOCKSIZE)
"""What ends a tar."""

_MOUNT_POINTS = (".dockerenv", "etc/hostname", "etc/hosts", "etc/resolv.conf")
_KEPT_XATTRS = ("security.capability", "user.")
_LEFT_OUT_XATTRS = ("user.overlay.",)
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


class Packer:
    """Packs any number of trees into one stream; the caller adds ``END``.

    ``whiteouts``: the trees are an overlay's upper directory, whose whiteouts and opaque
    directories become those of an image layer, and the empty files that the engine made to mount
    a container's own name files on are left out. ``id_map``: owners become those that the
    container sees.
    """

    def __init__(self, *, whiteouts: bool = False, id_map: IdMapping = NO_MAPPING) -> None:
        self._whiteouts = whiteouts
        self._id_map = id_map
        self._links: dict[tuple[int, int], str] = {}

    def tree(self, parent_fd: int, name: str, archive_name: str) -> Iterator[bytes]:
        """Yield one entry and all below it. It vanishes quietly where it was just removed;
        sockets are left out, which a tar cannot hold."""
        try:
            found = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if self._whiteouts and stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            directory, _, base = archive_name.rpartition("/")
            yield _whiteout(f"{directory}/{WHITEOUT_PREFIX}{base}".lstrip("/"))
        elif stat.S_ISDIR(found.st_mode):
            yield from self._directory(parent_fd, name, archive_name)
        elif stat.S_ISREG(found.st_mode):
            yield from self._file(parent_fd, name, archive_name)
        elif stat.S_IFMT(found.st_mode) in _TYPES:
            yield from self._other(parent_fd, name, archive_name, found)

    def children(self, directory_fd: int, archive_prefix: str) -> Iterator[bytes]:
        """Yield all below an open directory, named from ``archive_prefix``."""
        with os.scandir(directory_fd) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            yield from self.tree(directory_fd, name, f"{archive_prefix}{name}")

    def _directory(self, parent_fd: int, name: str, archive_name: str) -> Iterator[bytes]:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            member = self._member(f"{archive_name}/", os.fstat(fd))
            attributes = self._xattrs(fd)
            opaque = self._whiteouts and _is_opaque(fd)
            yield _header(member, attributes)
            prefix = f"{archive_name}/"
            if opaque:
                yield _whiteout(prefix + OPAQUE_WHITEOUT)
            yield from self.children(fd, prefix)
        finally:
            os.close(fd)

    def _file(self, parent_fd: int, name: str, archive_name: str) -> Iterator[bytes]:
        try:
            fd = os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=parent_fd
            )
        except FileNotFoundError:
            return
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return
            member = self._member(archive_name, found)
            if self._whiteouts and archive_name in _MOUNT_POINTS and not found.st_size:
                return
            if found.st_nlink > 1 and self._is_link(found, member):
                yield _header(member, {})
                return
            member.size = found.st_size
            yield _header(member, self._xattrs(fd))
            yield from _content(fd, found.st_size)
        finally:
            os.close(fd)

    def _other(
        self, parent_fd: int, name: str, archive_name: str, found: os.stat_result
    ) -> Iterator[bytes]:
        member = self._member(archive_name, found)
        if found.st_nlink > 1 and self._is_link(found, member):
            yield _header(member, {})
            return
        if member.issym():
            try:
                member.linkname = os.readlink(name, dir_fd=parent_fd)
            except OSError:
                return  # replaced meanwhile
        elif not member.isfifo():
            member.devmajor, member.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
        yield _header(member, {})

    def _member(self, name: str, found: os.stat_result) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type = _TYPES[stat.S_IFMT(found.st_mode)]
        member.mode = stat.S_IMODE(found.st_mode)
        member.uid, member.gid = self._id_map.to_container(found.st_uid, found.st_gid)
        member.mtime = found.st_mtime_ns // 1_000_000_000  # not by a float, which rounds up
        return member

    def _xattrs(self, fd: int) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for name in sorted(os.listxattr(fd)):
            if name.startswith(_KEPT_XATTRS) and not name.startswith(_LEFT_OUT_XATTRS):
                found[name] = os.getxattr(fd, name)
        if self._id_map and FILE_XATTR in found:
            found[FILE_XATTR] = file_capabilities(found[FILE_XATTR])
        return found

    def _is_link(self, found: os.stat_result, member: tarfile.TarInfo) -> bool:
        """Make ``member`` a hard link where its file is in the stream already."""
        key = (found.st_dev, found.st_ino)
        first = self._links.setdefault(key, member.name)
        if first == member.name:
            return False
        member.type, member.linkname, member.size = tarfile.LNKTYPE, first, 0
        return True


def _whiteout(name: str) -> bytes:
    member = tarfile.TarInfo(name)
    member.mode = 0
    return _header(member, {})


def _header(member: tarfile.TarInfo, attributes: dict[str, bytes]) -> bytes:
    member.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
        for name, value in attributes.items()
    }
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, OPAQUE_XATTR) == b"y"
    except OSError:
        return False  # no such attribute


def _content(fd: int, size: int) -> Iterator[bytes]:
    """Yield exactly ``size`` bytes and the padding, whatever happens to the file meanwhile."""
    left = size
    while left:
        data = os.read(fd, min(CHUNK_BYTES, left)) or bytes(min(CHUNK_BYTES, left))
        left -= len(data)
        yield data
    yield bytes(-size % tarfile.BLOCKSIZE)


def pack_layer(upper: str, id_map: IdMapping = NO_MAPPING) -> Iterator[bytes]:
    """Yield an overlay's upper directory as the tar of an image layer."""
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY)
    try:
        packer = Packer(whiteouts=True, id_map=id_map)
        if _is_opaque(fd):
            yield _whiteout(OPAQUE_WHITEOUT)
        yield from packer.children(fd, "")
        yield END
    finally:
        os.close(fd)


class IterReader:
    """A blocking reader over an iterator of bytes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._rest = chunk
        if size < 0:
            size = len(self._rest)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
