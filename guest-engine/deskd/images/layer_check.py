"""Whether a layer on the disk is still what was unpacked.

``sizes_problem`` compares what is cheap: the recipe, and the presence and size of every file that
it names. ``content_problem`` makes the layer's tar again, compares its hash with the diff ID and
every entry with what is on the disk, and looks for files that no entry made.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deskd import errors
from deskd.domain.image import LayerRecord
from deskd.images.layers import decoded
from deskd.images.pack import IterReader
from deskd.images.recipe import Replacement, open_file, read_parts
from deskd.images.streams import CHUNK_BYTES, ForwardReader
from deskd.images.unpack import (
    OPAQUE_WHITEOUT,
    OPAQUE_XATTR,
    WHITEOUT_META_PREFIX,
    WHITEOUT_PREFIX,
    clean_name,
    members,
    mtime_of,
    regions_of,
    xattrs_of,
)
from deskd.kernel.file_capabilities import FILE_XATTR
from deskd.kernel.mount import RESOLVE_IN_ROOT, openat2
from deskd.record import Record, field, replace
from deskd.storage.changes import is_opaque

_FORMATS = (
    (tarfile.TarInfo.isdir, stat.S_IFDIR),
    (tarfile.TarInfo.issym, stat.S_IFLNK),
    (tarfile.TarInfo.ischr, stat.S_IFCHR),
    (tarfile.TarInfo.isblk, stat.S_IFBLK),
    (tarfile.TarInfo.isfifo, stat.S_IFIFO),
)


def read_replacements(place: Path) -> Sequence[Replacement]:
    """Return what later entries of the layer's own tar replaced; raises ``DataLoss``."""
    try:
        return decoded(place.joinpath("replaced.json").read_text())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError) as error:
        raise errors.DataLoss(
            f"the list {place / 'replaced.json'} is damaged ({error}): pull or load the image again"
        ) from error


def sizes_problem(place: Path, record: LayerRecord) -> str:
    """Return what is wrong with the layer at ``place``, in words, or "" for nothing."""
    if not place.joinpath("diff").is_dir():
        return "its directory is missing"
    try:
        return _sizes_problem(place, record, read_replacements(place))
    except errors.DataLoss:
        return "the description of its tar is damaged"


def _sizes_problem(place: Path, record: LayerRecord, replaced: Sequence[Replacement]) -> str:
    root_fd = os.open(place / "diff", os.O_PATH | os.O_DIRECTORY)
    tar_bytes = 0
    try:
        for part in read_parts(str(place / "recipe")):
            if not part.path:
                tar_bytes += len(part.raw)
                continue
            try:
                fd = open_file(
                    root_fd, part.entry, part.path, replaced, str(place / "replaced"), os.O_PATH
                )
            except OSError:
                return f"its file /{part.path} is missing"
            try:
                found = os.fstat(fd)
            finally:
                os.close(fd)
            if not stat.S_ISREG(found.st_mode):
                return f"its file /{part.path} is no file any more"
            if not _has_size(found, part.regions):
                return f"its file /{part.path} has another size"
            tar_bytes += sum(size for _, size in part.regions)
    finally:
        os.close(root_fd)
    if tar_bytes != record.tar_bytes:
        return "the description of its tar is not complete"
    return ""


def _has_size(found: os.stat_result, regions: Sequence[tuple[int, int]]) -> bool:
    """A file that was stored whole ends with its only region; a sparse one may be longer."""
    end = max(offset + size for offset, size in regions)
    is_whole = len(regions) == 1 and regions[0][0] == 0
    if is_whole and found.st_blocks * 512 >= found.st_size:
        return found.st_size == end
    return found.st_size >= end


# --- the whole content --------------------------------------------------------------------------


class _Expected(Record):
    """What a tar's entry says of the object that it makes."""

    mode: int
    owner: tuple[int, int]
    size: int = -1
    link: str = ""
    device: int = 0
    mtime_ns: int = 0
    opaque: bool = False
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


_WHITEOUT = _Expected(stat.S_IFCHR, (0, 0))


def content_problem(place: Path, tar: Iterator[bytes], scratch: str) -> str:
    """Read the layer's ``tar`` (which verifies its hash at its end) and compare each entry with
    the disk; return what is wrong, in words, or "".

    ``scratch`` is a directory of the same file system, for short-lived samples.
    """
    try:
        expected = _expected(place, ForwardReader(IterReader(tar)))
    except errors.DataLoss:
        return "its content does not have its digest any more"
    except (tarfile.TarError, errors.InvalidArgument):
        return "the description of its tar is damaged"
    return _compare(place / "diff", expected, scratch)


def _expected(place: Path, reader: ForwardReader) -> dict[str, _Expected | None]:
    """Return what each path of the unpacked layer must be, the last entry of a path counting;
    ``None`` for a further name of a file, of which only the presence is known."""
    expected: dict[str, _Expected | None] = {}
    opaque_paths: set[str] = set()
    replaces = bool(read_replacements(place))
    root_fd = os.open(place / "diff", os.O_PATH | os.O_DIRECTORY)
    try:
        for member in members(reader):
            directory, name = posixpath.split(clean_name(member.name))
            wanted: _Expected | None = None if member.islnk() else _of_member(member)
            if name.startswith(WHITEOUT_PREFIX):
                if name == OPAQUE_WHITEOUT:
                    opaque_paths.add(_real(root_fd, directory, "").rstrip("/"))
                if name.startswith(WHITEOUT_META_PREFIX):
                    continue
                name, wanted = name.removeprefix(WHITEOUT_PREFIX), _WHITEOUT
            path = _real(root_fd, directory, name)
            if member.isdir():
                wanted = _on_top(expected.get(path), wanted)
            else:
                opaque_paths.discard(path)
                if replaces:
                    _forget_below(expected, path)
                    opaque_paths = {p for p in opaque_paths if not p.startswith(f"{path}/")}
            expected[path] = wanted
            _skip(reader, member)
    finally:
        os.close(root_fd)
    reader.drain()
    for path in opaque_paths:  # whose own entries come before or after that mark, or never
        if (marked := expected.get(path)) is not None:
            expected[path] = replace(marked, opaque=True)
    return expected


def _on_top(before: _Expected | None, wanted: _Expected | None) -> _Expected | None:
    """Return what two entries of one directory make: the first one's attributes stay."""
    if before is None or wanted is None or not stat.S_ISDIR(before.mode):
        return wanted
    return replace(wanted, xattrs={**before.xattrs, **wanted.xattrs})


def _forget_below(expected: dict[str, _Expected | None], path: str) -> None:
    for other in [other for other in expected if other.startswith(f"{path}/")]:
        del expected[other]


def _skip(reader: ForwardReader, member: tarfile.TarInfo) -> None:
    end = member.offset_data + _stored_bytes(member)
    while reader.tell() < end and reader.read_content(min(CHUNK_BYTES, end - reader.tell())):
        pass


def _stored_bytes(member: tarfile.TarInfo) -> int:
    if member.issparse():
        return sum(size for _, size in regions_of(member))
    return member.size if member.isreg() else 0


def _real(root_fd: int, directory: str, name: str) -> str:
    """Return the path without the symbolic links on its way, as the unpacker went it."""
    try:
        fd = openat2(root_fd, directory or ".", os.O_PATH | os.O_DIRECTORY, RESOLVE_IN_ROOT)
    except OSError:
        return posixpath.join(directory, name)
    try:
        root = str(Path(f"/proc/self/fd/{root_fd}").readlink())
        real = str(Path(f"/proc/self/fd/{fd}").readlink())[len(root) :].lstrip("/")
    finally:
        os.close(fd)
    return posixpath.join(real, name)


def _of_member(member: tarfile.TarInfo) -> _Expected:
    kind = next((kind for is_kind, kind in _FORMATS if is_kind(member)), stat.S_IFREG)
    mode = kind | (0o777 if member.issym() else member.mode & 0o7777)
    is_device = member.ischr() or member.isblk()
    return _Expected(
        mode,
        (member.uid, member.gid),
        size=member.size if kind == stat.S_IFREG else -1,
        link=member.linkname if member.issym() else "",
        device=os.makedev(member.devmajor, member.devminor) if is_device else 0,
        mtime_ns=mtime_of(member),
        xattrs=xattrs_of(member),
    )


def _compare(diff: Path, expected: dict[str, _Expected | None], scratch: str) -> str:
    made_on_the_way = {
        parent for path in expected for parent in _parents(path) if parent not in expected
    }
    if "" in expected and (problem := _difference(str(diff), "", expected[""], scratch)):
        return problem
    seen: set[str] = set()
    for directory, directories, files in os.walk(diff):
        for name in (*directories, *files):
            full = f"{directory}/{name}"
            path = full[len(str(diff)) + 1 :]
            if path in expected:
                seen.add(path)
                if problem := _difference(full, path, expected[path], scratch):
                    return problem
            elif path not in made_on_the_way:
                return f"/{path} was put into it"
    missing = [path for path in expected if path and path not in seen]
    return f"its entry /{min(missing)} is missing" if missing else ""


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


def _difference(full: str, path: str, wanted: _Expected | None, scratch: str) -> str:
    if wanted is None:
        return ""
    found = os.lstat(full)
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFCHR and found.st_rdev == 0:
        return "" if stat.S_IFMT(wanted.mode) == kind else f"/{path} was changed"
    has = _Expected(
        found.st_mode,
        (found.st_uid, found.st_gid),
        size=found.st_size if kind == stat.S_IFREG else -1,
        link=os.readlink(full) if kind == stat.S_IFLNK else "",
        device=found.st_rdev,
        mtime_ns=found.st_mtime_ns,
        opaque=kind == stat.S_IFDIR and is_opaque(full),
    )
    same = all(getattr(has, name) == getattr(wanted, name) for name in _COMPARED)
    if same and _has_xattrs(full, wanted, scratch):
        return ""
    return f"/{path} was changed"


def _has_xattrs(full: str, wanted: _Expected, scratch: str) -> bool:
    found = {
        name: os.getxattr(full, name, follow_symlinks=False)
        for name in os.listxattr(full, follow_symlinks=False)
    }
    for name, value in wanted.xattrs.items():
        if found.get(name) != value and found.get(name) != _as_kept(
            scratch, wanted.mode, name, value
        ):
            return False
    # Security modules and default ACLs give attributes by themselves; nobody gives these.
    return not any(
        name.startswith(("user.", "trusted.")) or name == FILE_XATTR
        for name in found
        if name not in wanted.xattrs and name != OPAQUE_XATTR
    )


def _as_kept(scratch: str, mode: int, name: str, value: bytes) -> bytes | None:
    """Return what the file system makes of an attribute of such a file, None where it refuses it:
    no ``user.`` for links, capabilities and ACLs in the kernel's own form."""
    try:
        with tempfile.TemporaryDirectory(prefix="check-", dir=scratch) as directory:
            sample = Path(directory, "sample")
            if stat.S_ISDIR(mode):
                sample.mkdir()
            elif stat.S_ISLNK(mode):
                sample.symlink_to("nowhere")
            elif stat.S_ISREG(mode):
                sample.touch()
            else:
                os.mkfifo(sample)
            os.setxattr(sample, name, value, follow_symlinks=False)
            return os.getxattr(sample, name, follow_symlinks=False)
    except OSError:
        return None


_COMPARED = ("mode", "owner", "size", "link", "device", "mtime_ns", "opaque")
