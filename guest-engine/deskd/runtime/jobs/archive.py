"""The jobs behind ``docker cp`` and ``docker export``: files of a container as tar streams.

They run with the container's root as theirs, so that no symbolic link in the container's files,
and none that it makes while they work, leads out of it (the weakness of CVE-2018-15664).

Arguments of all: ``container`` (the name for error texts) and either ``pid`` (the first process
of a running container) or ``root`` (encoded mount steps of a stopped one) with ``staging`` (an
engine-side directory). ``path`` is a path in the container as the client wrote it: a final ``/``
or ``/.`` follows a symbolic link and asks for the directory's content. ``uid_map`` and ``gid_map``
are those of a container in a user namespace: its IDs are in the archives, the machine's on the
files.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat as modes
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from deskd import errors
from deskd.domain.id_mapping import IdMapping
from deskd.domain.times import rfc3339
from deskd.images.pack import END, Packer
from deskd.images.unpack import IntoExisting, unpack
from deskd.kernel import mount, namespaces
from deskd.runtime import identity
from deskd.runtime.jobs.enter import enter_container, enter_root
from deskd.runtime.rootfs import remount_root_read_only

_GO_KINDS = {
    modes.S_IFDIR: 1 << 31,
    modes.S_IFLNK: 1 << 27,
    modes.S_IFBLK: 1 << 26,
    modes.S_IFCHR: 1 << 26 | 1 << 21,
    modes.S_IFIFO: 1 << 25,
    modes.S_IFSOCK: 1 << 24,
}
_GO_BITS = {modes.S_ISUID: 1 << 23, modes.S_ISGID: 1 << 22, modes.S_ISVTX: 1 << 20}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def stat(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Return ``name``, ``size`` (bytes), ``mode`` (bits of Go's os.FileMode), ``mtime`` and
    ``linkTarget`` of ``path``, as the header X-Docker-Container-Path-Stat carries them.

    Raises ``NotFound``.
    """
    del fds
    _enter(arguments)
    path = absolute(arguments["path"])
    found = _stat(path, arguments, follow_symlinks=False)
    target = ""
    if modes.S_ISLNK(found.st_mode):
        target = os.path.realpath(path)
    return {
        "name": _base(path),
        "size": found.st_size,
        "mode": go_mode(found.st_mode),
        "mtime": rfc3339(found.st_mtime_ns),
        "linkTarget": target,
    }


def get(arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Write ``path`` as a tar to ``fds[0]``: a directory with all below it, or one entry, named
    by the path's last component. Raises ``NotFound``."""
    _enter(arguments)
    path = absolute(arguments["path"])
    found = _stat(path, arguments, follow_symlinks=False)
    if arguments.get("pid") and os.path.realpath(path) == "/":
        _leave_out_system_mounts()
    packer = Packer(id_map=_id_map(arguments))
    is_directory = modes.S_ISDIR(found.st_mode)
    parent, name = posixpath.split(path)
    try:
        fd = os.open(path if is_directory else parent, _DIRECTORY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(arguments) from error  # the container took it away meanwhile
    if not is_directory:
        _send(fds[0], packer.tree(fd, name, name))
    else:
        base = _base(path)
        _send(fds[0], packer.tree(fd, ".", "" if base == "/" else base))
    _send(fds[0], [END])


def _leave_out_system_mounts() -> None:
    """Take away this job's view of the kernel's own trees, which have no end and no sizes."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.mount("", "/", "", mount.MS_REC | mount.MS_PRIVATE)
    for path in ("/dev", "/proc", "/sys"):
        with suppress(OSError):  # nothing is mounted there
            mount.umount2(path, mount.MNT_DETACH)


def put(arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Unpack the plain tar from ``fds[0]`` into the directory ``path``.

    Further arguments: ``refuse_kind_change`` (noOverwriteDirNonDir), ``user`` (the owner of all
    entries, empty to keep theirs) and ``read_only`` (the root of a stopped container is marked
    so). Raises ``NotFound`` and ``InvalidArgument`` with Docker's words.
    """
    _enter(arguments)
    if arguments.get("read_only") and not arguments.get("pid"):
        remount_root_read_only()
    path = absolute(arguments["path"])
    found = _stat(path, arguments)
    if not modes.S_ISDIR(found.st_mode):
        raise errors.InvalidArgument("extraction point is not a directory")
    policy = IntoExisting(
        refuse_kind_change=bool(arguments.get("refuse_kind_change")),
        owner=_owner(arguments.get("user") or ""),
        id_map=_id_map(arguments),
    )
    changed = (
        f"the archive cannot be unpacked in {path}: a directory went away or takes no files; "
        "if the container changed it meanwhile, copy again"
    )
    try:
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            marked = "container rootfs" if _is_root_mount(found) else "mounted volume"
            raise errors.InvalidArgument(f"{marked} is marked read-only")
        unpack(_FdReader(fds[0]), path, into_existing=policy)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise errors.Conflict(changed) from error
    except errors.DeskdError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise errors.Conflict(changed) from error
        raise


def export(arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Write the container's whole root file system, without what is mounted on it, as a tar to
    ``fds[0]``."""
    _enter(arguments)
    # A clone of the root's own mount: volumes, /proc and the like are not in it.
    root = mount.open_tree("/")
    fd = os.open(".", _DIRECTORY, dir_fd=root)
    _send(fds[0], Packer(id_map=_id_map(arguments)).children(fd, ""))
    _send(fds[0], [END])


def absolute(path: str) -> str:
    """Return the path from "/", cleaned, with its final ``/`` or ``/.`` kept."""
    if "\0" in path:
        raise errors.InvalidArgument("the path has a NUL in it")
    cleaned = "/" + posixpath.normpath("/" + path).lstrip("/")
    if cleaned == "/":
        return cleaned
    if path.endswith("/."):
        return cleaned + "/."
    return cleaned + "/" if path.endswith("/") else cleaned


def go_mode(mode: int) -> int:
    """Translate a file's mode into the bits of Go's os.FileMode."""
    bits = mode & 0o777 | _GO_KINDS.get(modes.S_IFMT(mode), 0)
    for unix, go in _GO_BITS.items():
        bits |= go if mode & unix else 0
    return bits


def _base(path: str) -> str:
    """Return the last component as Go's filepath.Base does (``/`` for the root)."""
    return posixpath.basename(path.rstrip("/")) or "/"


def _enter(arguments: Mapping[str, Any]) -> None:
    if arguments.get("pid"):
        enter_container(int(arguments["pid"]))
    else:
        enter_root(arguments["root"], arguments["staging"])


def _missing(arguments: Mapping[str, Any]) -> errors.NotFound:
    return errors.NotFound(
        f"Could not find the file {arguments['path']} in container {arguments['container']}"
    )


def _stat(
    path: str, arguments: Mapping[str, Any], *, follow_symlinks: bool = True
) -> os.stat_result:
    try:
        return os.stat(path, follow_symlinks=follow_symlinks)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(arguments) from error
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        reason = (error.strerror or "").lower()
        raise errors.InvalidArgument(f"the path {path[:100]}… is refused: {reason}") from error


def _is_root_mount(found: os.stat_result) -> bool:
    return found.st_dev == os.stat("/").st_dev


def _id_map(arguments: Mapping[str, Any]) -> IdMapping:
    uids, gids = (
        tuple((inside, outside, count) for inside, outside, count in arguments.get(name) or ())
        for name in ("uid_map", "gid_map")
    )
    return IdMapping(uids, gids)


def _owner(user: str) -> tuple[int, int] | None:
    if not user:
        return None
    try:
        found = identity.look_up(user, ())
    except identity.LookupFailed as error:
        raise errors.InvalidArgument(str(error)) from error
    return found.uid, found.gid


class _FdReader:
    """A blocking reader of a file descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, size: int = -1, /) -> bytes:
        return os.read(self._fd, size if size > 0 else 65536)


def _send(fd: int, chunks: Iterable[bytes]) -> None:
    """Write all chunks; a reader that went away ends the job quietly."""
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            raise errors.Unavailable("the reader of the archive went away") from error
        raise
