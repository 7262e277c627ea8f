"""Performs mount steps below a new root. The one executor of ``MountStep``.

Runs in a process with a mount namespace of its own. Targets are resolved with
``RESOLVE_IN_ROOT``, and everything is mounted on descriptors, so that nothing in the container's
files can lead a mount out of the root.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence

from deskd.domain.mount import MountStep
from deskd.errors import InvalidArgument, NotFound
from deskd.kernel import mount as sys
from deskd.kernel import namespaces

_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_FD = "/proc/self/fd/"

PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "net/dev",
        "slabinfo",
        "stat",
        "swaps",
        "uptime",
    )
)
"""Reports of the kernel that may be covered with others: lxcfs does so. Nothing acts on them."""


class Root:
    """A root being built on ``staging``, an engine-side directory that the mounts will cover."""

    def __init__(self, staging: str) -> None:
        self.staging = staging
        self.fd = -1
        self._proc_device = -1

    def build(self, steps: Sequence[MountStep]) -> None:
        """Perform the steps that make "/" (the first must target it), then those below it."""
        for step in steps:
            self.build_one(step)
        if self.fd == -1:
            raise ValueError("no mount step builds the root")

    def build_one(self, step: MountStep) -> None:
        """Perform one step at or below "/"."""
        if os.path.normpath(step.target) != "/":
            self.perform(step)
            return
        if step.kind == "bind":
            tree = clone_source(step)
            target = os.open(self.staging, _DIRECTORY | os.O_CLOEXEC)
            sys.move_mount(tree, target)
            os.close(tree)
            os.close(target)
        else:
            _mount(step, self.staging)
        if self.fd != -1:
            os.close(self.fd)
        self.fd = os.open(self.staging, _DIRECTORY | os.O_CLOEXEC)

    def open(self, path: str, flags: int = os.O_PATH) -> int:
        """Open a path inside the root."""
        return sys.openat2(self.fd, path, flags, sys.RESOLVE_IN_ROOT | sys.RESOLVE_NO_MAGICLINKS)

    def open_system_directory(self, path: str) -> int:
        """Open or make a directory such as /proc. Raises ``InvalidArgument`` for a symbolic link
        or a file in its place."""
        flags = sys.RESOLVE_IN_ROOT | sys.RESOLVE_NO_SYMLINKS
        try:
            try:
                return sys.openat2(self.fd, path, _DIRECTORY, flags)
            except FileNotFoundError:
                os.close(self.make_directories(path))
                return sys.openat2(self.fd, path, _DIRECTORY, flags)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            kind = "a symbolic link" if error.errno == errno.ELOOP else "no directory"
            raise InvalidArgument(
                f"{path} of the container's file system is {kind}; use an image where it is a"
                " directory or missing"
            ) from error

    def make_directories(self, path: str) -> int:
        """Open a directory inside the root, made with its parents where missing."""
        try:
            return self.open(path, _DIRECTORY)
        except FileNotFoundError:
            pass
        parent, name = os.path.split(path.rstrip("/"))
        above = self.make_directories(parent or "/")
        try:
            if name in ("", ".", ".."):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
            try:
                os.mkdir(name, 0o755, dir_fd=above)
            except FileExistsError:
                # A dangling link: make what it points to, still inside the root.
                link = os.readlink(name, dir_fd=above)
                goal = link if link.startswith("/") else f"{parent}/{link}"
                return self.make_directories(os.path.normpath(goal))
        finally:
            os.close(above)
        return self.open(path, _DIRECTORY)

    def make_file(self, path: str) -> int:
        """Open a file inside the root as a mount point, made empty where missing."""
        try:
            return self.open(path)
        except FileNotFoundError:
            pass
        parent, name = os.path.split(path)
        os.close(self.make_directories(parent or "/"))
        flags = os.O_CREAT | os.O_WRONLY | os.O_NOCTTY
        resolve = sys.RESOLVE_IN_ROOT | sys.RESOLVE_NO_MAGICLINKS
        os.close(sys.openat2(self.fd, f"{parent}/{name}", flags, resolve, 0o644))
        return self.open(path)

    def adopt(self, tree: int, target: int) -> None:
        """Take a ready-made detached mount as the root and put it on the directory ``target``."""
        sys.move_mount(tree, target)
        self.fd = tree

    def perform(self, step: MountStep, tree: int | None = None) -> None:
        """Perform one step below "/"; ``tree`` is a bind's mount where it is already made."""
        if step.kind == "bind":
            tree = clone_source(step) if tree is None else tree
            try:
                self.attach(tree, step.target, create=step.create)
            finally:
                os.close(tree)
            return
        target = (
            self.open_system_directory(step.target)
            if step.kind in ("proc", "sysfs", "cgroup")
            else self.make_directories(step.target)
        )
        try:
            _mount(step, f"{_FD}{target}")
        finally:
            os.close(target)

    def perform_wish(self, step: MountStep, tree: int | None = None) -> None:
        """Perform a mount that the container's owner asked for, once the system's own stand.

        Raises ``InvalidArgument`` where it would put other files in the place of the kernel's in
        /proc: what is written to and read from there at the start must be the kernel's.
        """
        if self._proc_device == -1:
            self._proc_device = _device(self.open("/proc"))
        tree = clone_source(step) if tree is None and step.kind == "bind" else tree
        try:
            target = self._target(step, tree)
            if _device(target) == self._proc_device and not self._may_cover(step, tree):
                raise InvalidArgument(
                    f"the mount at {step.target} may not cover /proc or what is in it; choose"
                    " another place in the container"
                )
        except BaseException:
            if tree is not None:
                os.close(tree)
            raise
        try:
            self.perform(step, tree)
        except OSError as error:
            if step.kind == "tmpfs" and error.errno == errno.EINVAL:
                raise InvalidArgument(
                    f"the tmpfs at {step.target} has an option that the kernel refuses: {step.data}"
                ) from error
            raise

    def _target(self, step: MountStep, tree: int | None) -> int:
        if not step.create:
            return self.open(step.target)
        if tree is None or stat.S_ISDIR(os.fstat(tree).st_mode):
            return self.make_directories(step.target)
        return self.make_file(step.target)

    def _may_cover(self, step: MountStep, tree: int | None) -> bool:
        if os.path.normpath(step.target) in PROC_FILES:
            return True
        # ``-v /proc:/proc``: another procfs is the kernel's too, and is masked like the own one.
        return tree is not None and os.fstat(tree).st_dev == os.stat("/proc").st_dev

    def attach(self, tree: int, path: str, *, create: bool = True) -> None:
        """Put the detached mount ``tree`` on a path inside the root."""
        is_directory = stat.S_ISDIR(os.fstat(tree).st_mode)
        if not create:
            target = self.open(path)
        else:
            target = self.make_directories(path) if is_directory else self.make_file(path)
        try:
            sys.move_mount(tree, target)
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                raise OSError(
                    error.errno,
                    "not a directory: are you trying to mount a directory onto a file"
                    " (or vice-versa)? Check that the path has the expected type",
                    path,
                ) from error
            raise
        finally:
            os.close(target)

    def mask(self, paths: Iterable[str]) -> None:
        """Hide files behind /dev/null and directories behind an empty tmpfs."""
        for path in paths:
            try:
                target = self.open(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                if stat.S_ISDIR(os.fstat(target).st_mode):
                    sys.mount("tmpfs", f"{_FD}{target}", "tmpfs", sys.MS_RDONLY, "nr_inodes=1")
                else:
                    null = sys.open_tree("/dev/null")
                    sys.move_mount(null, target)
                    os.close(null)
            finally:
                os.close(target)

    def make_read_only(self, paths: Iterable[str]) -> None:
        """Cover paths with read-only views of themselves."""
        for path in paths:
            try:
                target = self.open(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            tree = sys.open_tree("", directory_fd=target, recursive=True)
            os.close(target)
            sys.mount_setattr(tree, set_flags=sys.MOUNT_ATTR_RDONLY, recursive=True)
            self.attach(tree, path, create=False)
            os.close(tree)

    def pivot(self) -> None:
        """Make this the process's root and let the old one go."""
        old = os.open("/", _DIRECTORY | os.O_CLOEXEC)
        os.fchdir(self.fd)
        sys.pivot_root(".", ".")
        os.fchdir(old)
        os.close(old)
        # Where a bind asked for propagation, the old root's mounts are still peers of the
        # engine's: without this, the machine itself would lose what is unmounted here.
        sys.mount("", ".", "", sys.MS_REC | sys.MS_SLAVE)
        sys.umount2(".", sys.MNT_DETACH)
        os.chdir("/")
        os.close(self.fd)


def remount_root_read_only() -> None:
    """Make the mount at "/" read-only, not those below it."""
    fd = os.open("/", _DIRECTORY | os.O_CLOEXEC)
    try:
        sys.mount_setattr(fd, set_flags=sys.MOUNT_ATTR_RDONLY)
    finally:
        os.close(fd)


def detach_from_engine(propagation: str = "rprivate") -> None:
    """Cut this mount namespace's events off from the engine's, as far as ``propagation`` says."""
    if propagation == "rshared":
        return
    kind = sys.PROPAGATION[propagation.removeprefix("r")]
    sys.mount("", "/", "", sys.MS_REC | kind)


def _device(fd: int) -> int:
    """Return the file system that a descriptor is on, and close it."""
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def _flags(step: MountStep) -> int:
    flags = sys.MS_RDONLY if step.read_only else 0
    for word in step.flags:
        flags |= sys.FLAGS.get(word, 0)
    return flags


def _mount(step: MountStep, target: str) -> None:
    kind: str = step.kind
    if kind == "cgroup" and not step.data:
        kind = "cgroup2"
    source = step.source or kind
    if step.kind == "overlay" and step.source:
        if step.uid_map:
            _cover_with_mapped(step)
        os.chdir(step.source)  # what the names of the layers in ``data`` start from
        source = "overlay"
    sys.mount(source, target, kind, _flags(step), step.data)


def _cover_with_mapped(step: MountStep) -> None:
    """Put a view of the layers with mapped owners over them, for this mount namespace only."""
    tree = sys.open_tree(step.source)
    place = os.open(step.source, _DIRECTORY | os.O_CLOEXEC)
    user_namespace = namespaces.open_user_namespace(step.uid_map, step.gid_map)
    try:
        sys.map_ids(tree, user_namespace)
        sys.move_mount(tree, place)
    finally:
        for fd in (tree, place, user_namespace):
            os.close(fd)


def _clone(step: MountStep) -> int:
    return sys.open_tree(step.source, recursive=step.recursive)


def _clone_part(step: MountStep) -> int:
    """Clone what is at ``subpath``, which whoever can write to the source may change meanwhile."""
    whole = os.open(step.source, _DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = sys.RESOLVE_IN_ROOT | sys.RESOLVE_NO_MAGICLINKS
        part = sys.openat2(whole, step.subpath, os.O_PATH, resolve)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise
        raise NotFound(
            f"cannot access path {step.source}/{step.subpath}: {(error.strerror or '').lower()};"
            " make it in the volume first"
        ) from error
    finally:
        os.close(whole)
    try:
        return sys.open_tree("", directory_fd=part, recursive=step.recursive)
    finally:
        os.close(part)


def clone_source(step: MountStep) -> int:
    """Make the detached mount of a bind, with its flags; return its descriptor."""
    tree = _clone_part(step) if step.subpath else _clone(step)
    attributes = sys.MOUNT_ATTR_RDONLY if step.read_only else 0
    for word in step.flags:
        attributes |= sys.ATTRIBUTES.get(word, 0)
    try:
        if attributes:
            sys.mount_setattr(tree, set_flags=attributes, recursive=step.recursive_read_only)
        propagation = step.propagation or "rprivate"
        sys.mount_setattr(
            tree,
            propagation=sys.PROPAGATION[propagation.removeprefix("r")],
            recursive=propagation.startswith("r"),
        )
    except OSError:
        os.close(tree)
        raise
    return tree
