"""Unpacks an untrusted tar into a directory that nothing in it can escape.

The rules:

* A name is cleaned lexically; one that leads outside the root (``../x``) is refused. Absolute
  names count from the root.
* Parents are opened with ``openat2(RESOLVE_IN_ROOT)``: symbolic links on the way, also hostile
  ones, end inside the layer. The last component is never followed.
* Nothing is ever opened for writing that existed before: what an entry replaces is moved away,
  and files are created with ``O_EXCL``. A device or FIFO of an earlier entry gets no data.
* Hard links are made between two such places only.
* Extended attributes that steer overlayfs (``trusted.overlay.*``) are taken from whiteouts only.

Whiteouts of the OCI image specification become those of overlayfs: ``.wh.NAME`` a character
device 0/0, ``.wh..wh..opq`` the attribute ``trusted.overlay.opaque=y``.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import stat
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Self, cast

from deskd import errors
from deskd.domain.id_mapping import NO_MAPPING, IdMapping
from deskd.images.recipe import RecipeWriter, Replacement
from deskd.images.streams import CHUNK_BYTES, ByteReader, ForwardReader, is_damage
from deskd.kernel.file_capabilities import FILE_XATTR, file_capabilities
from deskd.kernel.mount import RESOLVE_IN_ROOT, openat2
from deskd.record import Record, field

WHITEOUT_PREFIX = ".wh."
WHITEOUT_META_PREFIX = ".wh..wh."
OPAQUE_WHITEOUT = ".wh..wh..opq"
OPAQUE_XATTR = "trusted.overlay.opaque"
_XATTR_RECORD = "SCHILY.xattr."
_FORBIDDEN_XATTRS = ("trusted.overlay.", "user.overlay.")
_PARENT_CACHE_SIZE = 64
_ROOT_MODE = 0o755
_ENTRY_FAULTS = (
    errno.EEXIST,  # a directory is missing where a link to nothing stands
    errno.EINVAL,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_BLOCK_BYTES = 512
_PLAIN_KINDS = b"0123456"  # files, hard and symbolic links, devices, directories, FIFOs
_NUMBERS = ((100, 108), (108, 116), (116, 124), (124, 136), (136, 148))  # mode to mtime
_BLANK_CHECKSUM = 8 * ord(" ")
_MAXIMUM_DEPTH = 256


class Unpacked(Record, frozen=False):
    """What was unpacked: the stream's diff ID and length, the bytes of the files and symbolic
    links that are left, the replaced objects."""

    diff_id: str
    tar_bytes: int
    size_bytes: int
    replaced: list[Replacement] = field(default_factory=list)


class _Parent(Record):
    fd: int
    path: str  # from the root, without symbolic links; "" for the root itself

    def join(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


class IntoExisting(Record):
    """How an archive is put into a directory that has files (``docker cp``): whiteouts mean
    nothing, the directory itself keeps its attributes, what an entry replaces is removed.

    ``refuse_kind_change`` forbids a file in a directory's place and the other way round;
    ``owner`` (user, group) is given to all entries instead of their own. ``id_map`` is that of the
    container whose IDs these are; the files get the machine's.
    """

    refuse_kind_change: bool = False
    owner: tuple[int, int] | None = None
    id_map: IdMapping = NO_MAPPING


def unpack(
    source: ByteReader,
    root: str,
    *,
    recipe: str | None = None,
    replaced_root: str | None = None,
    into_existing: IntoExisting | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Unpacked:
    """Unpack the plain tar ``source`` into the directory ``root``: an empty one, as a layer, or
    with ``into_existing`` one that has files.

    With ``recipe`` the tar can be made again (``deskd.images.recipe``); ``replaced_root`` is where
    replaced objects go then. ``on_progress`` gets the number of bytes read so far.

    Raises ``InvalidArgument`` for a damaged or hostile archive and ``ResourceExhausted`` for a
    full disk; the caller removes what was made.
    """
    writer = RecipeWriter(recipe) if recipe else None
    reader = ForwardReader(source, writer.raw if writer else None)
    try:
        with _Unpacker(reader, root, writer, replaced_root, into_existing) as unpacker:
            for member in members(reader):
                unpacker.place(member)
                if on_progress:
                    on_progress(reader.tell())
            unpacker.finish_directories()
        reader.drain()
        if writer:
            writer.close()
    except errors.DeskdError:
        raise
    except Exception as error:
        raise _explained(error) from error
    finally:
        if writer:
            writer.abandon()
    return Unpacked(
        f"sha256:{reader.hex_digest}", reader.tell(), unpacker.size_bytes, unpacker.replaced
    )


def _explained(error: Exception) -> Exception:
    """Turn what went wrong into one sentence; unknown errors stay as they are."""
    if isinstance(error, tarfile.TarError | UnicodeError) or is_damage(error):
        return errors.InvalidArgument(
            f"the archive is damaged or not a tar archive ({error}): make or fetch it again"
        )
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return errors.ResourceExhausted(
                "no space left on the disk of the data root while unpacking the archive: free "
                "space (`docker system prune`) or give the machine a bigger disk"
            )
        if error.errno in _ENTRY_FAULTS:
            return errors.InvalidArgument(f"the archive has an entry that cannot be made: {error}")
        return errors.SystemFailure(f"the archive cannot be unpacked: {error}")
    return error


class _Member(tarfile.TarInfo):
    """An entry whose header, where it is one of the usual kind, is read in a fraction of the time;
    the names of its owners, which mean nothing here, are left out. All else is ``tarfile``'s."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        kind = bytes(buf[156:157])
        if len(buf) != _BLOCK_BYTES or kind not in _PLAIN_KINDS:
            return super().frombuf(buf, encoding, errors)
        try:
            checksum = int(buf[148:156].rstrip(b" \0"), 8)
            if checksum != sum(buf) - sum(buf[148:156]) + _BLANK_CHECKSUM:
                return super().frombuf(buf, encoding, errors)
            member = cls()
            member.mode, member.uid, member.gid, member.size, member.mtime = (
                int(buf[start:end].rstrip(b" \0") or b"0", 8) for start, end in _NUMBERS
            )
            member.devmajor = int(buf[329:337].rstrip(b" \0") or b"0", 8)
            member.devminor = int(buf[337:345].rstrip(b" \0") or b"0", 8)
        except ValueError:
            return super().frombuf(buf, encoding, errors)  # numbers beyond octal digits, or damage
        name, _, _ = buf[:100].partition(b"\0")
        prefix, _, _ = buf[345:500].partition(b"\0")
        target, _, _ = buf[157:257].partition(b"\0")
        member.chksum, member.type = checksum, kind
        member.name = (prefix + b"/" + name if prefix else name).decode(encoding, errors)
        member.linkname = target.decode(encoding, errors)
        if kind == tarfile.DIRTYPE:
            member.name = member.name.rstrip("/")
        return member


def members(reader: ForwardReader) -> Iterator[tarfile.TarInfo]:
    """Yield the entries; a broken header raises, where ``tarfile`` alone would end silently."""
    with tarfile.TarFile(
        fileobj=reader,  # type: ignore[arg-type]
        mode="r",
        tarinfo=_Member,
        encoding="utf-8",
        errors="surrogateescape",
    ) as archive:
        while (member := archive.next()) is not None:
            reader.begin_entry()
            archive.members.clear()  # type: ignore[attr-defined]  # else all stay in memory
            # WORKAROUND: a "path" that follows it wins in tarfile, but names GNU tar's stand-in.
            member.name = member.pax_headers.get("GNU.sparse.name", member.name)
            yield member
    last = reader.last_block
    if any(last):
        raise tarfile.ReadError("an entry's header is damaged")
    if last and len(last) < _BLOCK_BYTES and reader.tell() % _BLOCK_BYTES:
        raise tarfile.ReadError("unexpected end of data")


def clean_name(name: str) -> str:
    """Return an entry's path from the root ("" for the root); raises ``InvalidArgument``."""
    cleaned = posixpath.normpath(name.lstrip("/") or ".")
    if cleaned == ".." or cleaned.startswith("../"):
        raise errors.InvalidArgument(
            f"the archive entry {name!r} leads outside the root file system: the archive is refused"
        )
    if cleaned.count("/") > _MAXIMUM_DEPTH:
        raise errors.InvalidArgument(
            f"the archive entry {name[:80]!r}… is more than {_MAXIMUM_DEPTH} directories deep"
        )
    if "\0" in cleaned:
        raise errors.InvalidArgument(f"the archive entry {name!r} has a NUL in its name")
    return "" if cleaned == "." else cleaned


class _Unpacker:
    """Places one entry after the other below the root directory."""

    def __init__(
        self,
        reader: ForwardReader,
        root: str,
        recipe: RecipeWriter | None,
        replaced_root: str | None,
        into_existing: IntoExisting | None,
    ) -> None:
        self._reader = reader
        self._existing = into_existing
        self._recipe = recipe
        self._replaced_root = replaced_root
        self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        # Only recipes need paths without links; inside a container there may be no /proc.
        self._root_path = _path_of(self._root_fd) if recipe else ""
        self._parents: OrderedDict[str, _Parent] = OrderedDict()
        self._directory_times: dict[str, int] = {}
        self.entry = 0
        self.size_bytes = 0
        self.replaced: list[Replacement] = []

    def __enter__(self) -> _Unpacker:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_parents()
        os.close(self._root_fd)

    # --- places ---------------------------------------------------------------------------------

    def _open(self, path: str, flags: int) -> int:
        return openat2(self._root_fd, path or ".", flags, RESOLVE_IN_ROOT)

    def _parent(self, path: str) -> _Parent:
        """Open a directory below the root, making what is missing."""
        cached = self._parents.get(path)
        if cached is not None:
            self._parents.move_to_end(path)
            return cached
        try:
            fd = self._open(path, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            above = self._parent(posixpath.dirname(path))
            os.mkdir(posixpath.basename(path), _ROOT_MODE, dir_fd=above.fd)
            if self._existing and self._existing.id_map:
                root = self._existing.id_map.root
                os.chown(posixpath.basename(path), *root, dir_fd=above.fd, follow_symlinks=False)
            fd = self._open(path, os.O_PATH | os.O_DIRECTORY)
        real = _path_of(fd)[len(self._root_path) :].lstrip("/") if self._recipe else path
        parent = _Parent(fd, real)
        self._parents[path] = parent
        if len(self._parents) > _PARENT_CACHE_SIZE:
            os.close(self._parents.popitem(last=False)[1].fd)
        return parent

    def _forget_parents(self) -> None:
        while self._parents:
            os.close(self._parents.popitem()[1].fd)

    def _clear_place(self, parent: _Parent, name: str, *, keep_directory: bool) -> bool:
        """Move away what is at this place; return whether a directory was kept."""
        try:
            found = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        is_directory = stat.S_ISDIR(found.st_mode)
        if self._existing and self._existing.refuse_kind_change and is_directory != keep_directory:
            old, new = ("directory", "non-directory")[:: 1 if is_directory else -1]
            raise errors.InvalidArgument(
                f'cannot overwrite {old} "/{parent.join(name)}" with {new}: remove it first'
            )
        if is_directory and keep_directory:
            return True
        if is_directory or stat.S_ISLNK(found.st_mode):
            # Cached parents may lie on or below it, so the handle of this one is opened anew.
            kept = _Parent(os.dup(parent.fd), parent.path)
            self._forget_parents()
            try:
                self._move_away(kept, name)
            finally:
                os.close(kept.fd)
        else:
            self._move_away(parent, name)
        return False

    def _move_away(self, parent: _Parent, name: str) -> None:
        if self._replaced_root is None:
            _remove(parent.fd, name)
            return
        self.size_bytes -= _counted_bytes(parent.fd, name)
        number = len(self.replaced)
        os.rename(name, f"{self._replaced_root}/{number}", src_dir_fd=parent.fd)
        self.replaced.append(Replacement(self.entry, number, parent.join(name)))

    def _owner(self, member: tarfile.TarInfo) -> tuple[int, int]:
        if self._existing is None:
            return _checked_owner(member)
        return self._existing.id_map.to_host(*(self._existing.owner or _checked_owner(member)))

    # --- entries --------------------------------------------------------------------------------

    def place(self, member: tarfile.TarInfo) -> None:
        """Make one entry."""
        self.entry += 1
        path = clean_name(member.name)
        directory, name = posixpath.split(path)
        if not path:
            self._place_root(member)
        elif name.startswith(WHITEOUT_PREFIX) and self._existing is None:
            self._place_whiteout(directory, name)
        elif member.isdir():
            self._place_directory(directory, name, member)
        elif member.isreg() or member.issparse():
            self._place_file(directory, name, member)
        elif member.issym():
            parent = self._fresh(directory, name)
            os.symlink(member.linkname, name, dir_fd=parent.fd)
            self._set_attributes(parent, name, member)
            self.size_bytes += len(os.fsencode(member.linkname))
        elif member.islnk():
            self._place_hard_link(directory, name, member)
        elif member.ischr() or member.isblk() or member.isfifo():
            self._place_node(directory, name, member)
        else:
            raise errors.InvalidArgument(
                f"the archive entry {member.name!r} is of the unknown type {member.type!r}"
            )

    def _fresh(self, directory: str, name: str) -> _Parent:
        """Return the parent, with nothing at ``name``."""
        self._clear_place(self._parent(directory), name, keep_directory=False)
        return self._parent(directory)

    def _place_root(self, member: tarfile.TarInfo) -> None:
        if not member.isdir():
            raise errors.InvalidArgument("the archive's entry for the root is not a directory")
        if self._existing:
            return
        os.fchown(self._root_fd, *self._owner(member))
        os.fchmod(self._root_fd, member.mode & 0o7777)
        self._set_xattrs(self._root_fd, member)
        self._directory_times[""] = mtime_of(member)

    def _place_whiteout(self, directory: str, name: str) -> None:
        parent = self._parent(directory)
        if name == OPAQUE_WHITEOUT:
            with _readable(parent.fd) as fd:
                os.setxattr(fd, OPAQUE_XATTR, b"y")
        elif name.startswith(WHITEOUT_META_PREFIX):
            return  # AUFS's own bookkeeping (.wh..wh.plnk and the like) means nothing here
        else:
            hidden = name.removeprefix(WHITEOUT_PREFIX)
            if hidden in ("", ".", ".."):
                raise errors.InvalidArgument(f"the archive entry {name!r} is not a valid whiteout")
            parent = self._fresh(directory, hidden)
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent.fd)

    def _place_directory(self, directory: str, name: str, member: tarfile.TarInfo) -> None:
        kept = self._clear_place(self._parent(directory), name, keep_directory=True)
        parent = self._parent(directory)
        if not kept:
            os.mkdir(name, 0o700, dir_fd=parent.fd)
        fd = os.open(name, _DIRECTORY, dir_fd=parent.fd)
        try:
            os.fchown(fd, *self._owner(member))
            os.fchmod(fd, member.mode & 0o7777)
            self._set_xattrs(fd, member)
        finally:
            os.close(fd)
        self._directory_times[parent.join(name)] = mtime_of(member)

    def _place_file(self, directory: str, name: str, member: tarfile.TarInfo) -> None:
        parent = self._parent(directory)
        try:
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent.fd)
        except FileExistsError:
            parent = self._fresh(directory, name)
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=parent.fd)
        try:
            self._copy_content(fd, parent.join(name), member)
            os.fchown(fd, *self._owner(member))
            os.fchmod(fd, member.mode & 0o7777)  # after chown, which clears the set-user-ID bit
            self._set_xattrs(fd, member)
            mtime_ns = mtime_of(member)
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(fd)
        self.size_bytes += member.size

    def _copy_content(self, fd: int, path: str, member: tarfile.TarInfo) -> None:
        regions = regions_of(member)
        if self._recipe and regions:
            self._recipe.file(self.entry, path, regions)
        if self._reader.tell() != member.offset_data:
            raise tarfile.ReadError(f"the data of {member.name!r} is not where it belongs")
        for offset, size in regions:
            if offset:
                os.lseek(fd, offset, os.SEEK_SET)
            left = size
            while left:
                data = self._reader.read_content(min(CHUNK_BYTES, left))
                if not data:
                    raise tarfile.ReadError(f"unexpected end of data in {member.name!r}")
                left -= len(data)
                _write_all(fd, data)
        if member.issparse():
            os.ftruncate(fd, member.size)

    def _place_hard_link(self, directory: str, name: str, member: tarfile.TarInfo) -> None:
        target = clean_name(member.linkname)
        target_directory, target_name = posixpath.split(target)
        if not target_name:
            raise errors.InvalidArgument(f"the hard link {member.name!r} names a directory")
        if name == target_name and self._parent(directory) == self._parent(target_directory):
            return  # a link to itself, as some builders write; the file is there already
        parent = self._fresh(directory, name)
        parent_fd = os.dup(parent.fd)
        try:
            os.link(
                target_name,
                name,
                src_dir_fd=self._parent(target_directory).fd,
                dst_dir_fd=parent_fd,
                follow_symlinks=False,
            )
        except (FileNotFoundError, PermissionError):
            # Without its cause, which would pass for a path that a container took away meanwhile.
            raise errors.InvalidArgument(
                f"the hard link {member.name!r} names {member.linkname!r}, which is not a file of "
                "the archive"
            ) from None
        finally:
            os.close(parent_fd)

    def _place_node(self, directory: str, name: str, member: tarfile.TarInfo) -> None:
        parent = self._fresh(directory, name)
        kinds = ((member.isfifo(), stat.S_IFIFO), (member.ischr(), stat.S_IFCHR))
        kind = next((kind for is_kind, kind in kinds if is_kind), stat.S_IFBLK)
        device = 0 if member.isfifo() else os.makedev(member.devmajor, member.devminor)
        os.mknod(name, kind | 0o600, device, dir_fd=parent.fd)
        self._set_attributes(parent, name, member)

    def _set_attributes(self, parent: _Parent, name: str, member: tarfile.TarInfo) -> None:
        """Set owner, mode, attributes and time of something that cannot be opened safely."""
        os.chown(name, *self._owner(member), dir_fd=parent.fd, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, member.mode & 0o7777, dir_fd=parent.fd)
        self._set_xattrs(f"/proc/self/fd/{parent.fd}/{name}", member)
        mtime_ns = mtime_of(member)
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent.fd, follow_symlinks=False)

    def _set_xattrs(self, target: int | str, member: tarfile.TarInfo) -> None:
        id_map = self._existing.id_map if self._existing else NO_MAPPING
        for name, data in xattrs_of(member).items():
            is_mapped = id_map and name == FILE_XATTR
            _set_xattr(target, name, file_capabilities(data, id_map.root[0]) if is_mapped else data)

    def finish_directories(self) -> None:
        """Set the directories' times, which the entries inside have changed."""
        for path, mtime_ns in self._directory_times.items():
            try:
                fd = self._open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except (FileNotFoundError, NotADirectoryError, OSError) as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue  # a later entry took its place
                raise
            try:
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)


def _counted_bytes(directory_fd: int, name: str) -> int:
    """Return what an object adds to its layer's size. A file with other names stays."""
    found = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size if found.st_nlink == 1 else 0
    fd = os.open(name, _DIRECTORY, dir_fd=directory_fd)
    try:
        return sum(_counted_bytes(fd, inner) for inner in os.listdir(fd))
    finally:
        os.close(fd)


def _path_of(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())


class _readable:  # noqa: N801  # a context manager that reads as a verb
    """A readable descriptor of a directory that is open with ``O_PATH``."""

    def __init__(self, fd: int) -> None:
        self._fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _remove(parent_fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent_fd)
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=parent_fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def regions_of(member: tarfile.TarInfo) -> Sequence[tuple[int, int]]:
    """Return the stored parts of a file (offset, size); checks a sparse file's map."""
    if not member.issparse():
        if member.size < 0:
            raise tarfile.ReadError(f"the size of {member.name!r} is negative")
        return [(0, member.size)] if member.size else []
    end = 0
    regions: list[tuple[int, int]] = []
    for offset, size in cast(list[tuple[int, int]], member.sparse or []):
        if size == 0:
            continue  # unused places of the old GNU header, and the mark of the file's end
        if offset < end or size < 0 or offset + size > member.size:
            raise tarfile.ReadError(f"the map of the sparse file {member.name!r} is not valid")
        end = offset + size
        regions.append((offset, size))
    return regions


def _checked_owner(member: tarfile.TarInfo) -> tuple[int, int]:
    for number in (member.uid, member.gid):
        if not 0 <= number < 0xFFFFFFFF:
            raise errors.InvalidArgument(
                f"the archive entry {member.name!r} has the impossible owner {number}"
            )
    return member.uid, member.gid


def xattrs_of(member: tarfile.TarInfo) -> dict[str, bytes]:
    """Return the extended attributes that an entry's object is given."""
    found = {
        record.removeprefix(_XATTR_RECORD): value.encode("utf-8", "surrogateescape")
        for record, value in member.pax_headers.items()
        if record.startswith(_XATTR_RECORD)
    }
    return {name: value for name, value in found.items() if not name.startswith(_FORBIDDEN_XATTRS)}


def mtime_of(member: tarfile.TarInfo) -> int:
    """Return the time in nanoseconds; ``tarfile`` itself keeps a float, which loses digits."""
    text = member.pax_headers.get("mtime", "")
    try:
        mtime_ns = int(Decimal(text) * 1_000_000_000) if text else int(member.mtime) * 1_000_000_000
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise tarfile.ReadError(f"the time of {member.name!r} is not valid: {text!r}") from error
    # Outside of this range no file system keeps the time; 0 is what Docker takes then, too.
    return mtime_ns if -(1 << 62) < mtime_ns < (1 << 63) else 0


def _set_xattr(target: int | str, name: str, data: bytes) -> None:
    try:
        if isinstance(target, int):
            os.setxattr(target, name, data)
        else:
            os.setxattr(target, name, data, follow_symlinks=False)
    except OSError as error:
        # An attribute that this file system or kind of file cannot have (user.* on a device,
        # NFSv4 ACLs) is left out, as every engine does; others are real failures.
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise
