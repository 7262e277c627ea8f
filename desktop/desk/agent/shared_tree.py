"""The shared folders as files, and nothing else of this computer.

Paths are the machine's. Each is walked from its folder's root, component by component, through
descriptors that follow no symbolic link: the machine's kernel resolves links by itself, so whoever
sends a path through one means to get out. On Windows, which has no such descriptors, a path counts
only where its directory is really there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from desk.agent.echoes import Echoes
from desk.agent.host_paths import is_below

_WINDOWS = sys.platform == "win32"
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_WALK = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | _NO_FOLLOW
_LIST = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _NO_FOLLOW
_NEVER_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)

MODE_BITS = 0o1777
"""What the machine may set: a program of this computer's user must not become a set-user-ID one."""


UNCHANGED_S = 2**32 - 2
"""A modification time that means: set nothing. The machine's watchers see that somebody touched the
file, which is how they learn of changes made here."""


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """One root: its name in the machine, where it is here, and whether it may be written."""

    name: str
    place: str
    writable: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """A file, to be named by ``name`` relative to ``directory`` (``None``: a whole path)."""

    directory: int | None
    name: str
    writable: bool


class SharedTree:
    """Files below ``folders``; directories that are one of ``hidden`` cannot be entered.

    Methods raise ``OSError``; ``EACCES`` is for what is not shared. ``echoes`` learns how they
    leave what they change.
    """

    def __init__(
        self, folders: Sequence[SharedFolder], hidden: Sequence[str], echoes: Echoes
    ) -> None:
        self.echoes = echoes
        self.folders = tuple(sorted(folders, key=lambda folder: -len(folder.name)))
        self._hidden = tuple(hidden)
        self._hidden_ever: set[tuple[int, int]] = set()

    @contextlib.contextmanager
    def at(self, path: str, *, write: bool = False) -> Iterator[Place]:
        """Give the place of ``path`` for the time of the block, ready for functions of ``os``."""
        folder, parts = self._split(path)
        if write and not folder.writable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        if _WINDOWS:
            yield self._on_windows(folder, parts, path)
            return
        self._look_at_hidden()
        directory = os.open(folder.place, _WALK & ~_NO_FOLLOW)
        try:
            self._refuse_hidden(directory, path)
            for part in parts[:-1]:
                below = os.open(part, _WALK, dir_fd=directory)
                os.close(directory)
                directory = below
                self._refuse_hidden(directory, path)
            yield Place(directory, parts[-1] if parts else ".", folder.writable)
        finally:
            os.close(directory)

    def _split(self, path: str) -> tuple[SharedFolder, list[str]]:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts or not path.startswith("/") or "\0" in path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        clean = "/" + "/".join(parts)
        for folder in self.folders:
            if is_below(clean, folder.name):
                depth = len([part for part in folder.name.split("/") if part])
                return folder, parts[depth:]
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    def _on_windows(self, folder: SharedFolder, parts: list[str], path: str) -> Place:
        if any(":" in part or "\\" in part for part in parts):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        parent = str(Path(os.path.realpath(folder.place), *parts[:-1]))
        hidden = [os.path.realpath(place) for place in self._hidden]
        for place in (parent, str(Path(parent, *parts[-1:]))):
            if any(os.path.normcase(place + os.sep).startswith(os.path.normcase(h + os.sep))
                   for h in hidden):  # fmt: skip
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        if os.path.normcase(os.path.realpath(parent)) != os.path.normcase(parent):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return Place(None, str(Path(parent, *parts[-1:])), folder.writable)

    def _look_at_hidden(self) -> None:
        """Learn which directories the hidden ones are now."""
        for hidden in self._hidden:
            with contextlib.suppress(OSError):  # it is not there
                now = os.stat(hidden)  # noqa: PTH116 - Path costs five times as much, in each request
                self._hidden_ever.add((now.st_dev, now.st_ino))

    def _refuse_hidden(self, descriptor: int, path: str) -> None:
        if self._hidden:
            self._refuse_if_hidden(os.fstat(descriptor), path)

    def _refuse_if_hidden(self, found: os.stat_result, path: str) -> None:
        if not stat.S_ISDIR(found.st_mode):
            return
        # Whoever moved one, or a folder above it, finds it as closed as before.
        if (found.st_dev, found.st_ino) in self._hidden_ever:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    # --- reading -------------------------------------------------------------------------------

    def stat(self, path: str) -> os.stat_result:
        """Return what ``path`` itself is; a symbolic link is not followed."""
        with self.at(path) as place:
            found = os.stat(place.name, dir_fd=place.directory, follow_symlinks=False)
            self._refuse_if_hidden(found, path)
            return found

    def entries(self, path: str) -> list[tuple[str, os.stat_result]]:
        """Return a directory's names with what they are."""
        with self.at(path) as place:
            if place.directory is None:
                return _scan(place.name)
            descriptor = os.open(place.name, _LIST, dir_fd=place.directory)
            try:
                self._refuse_hidden(descriptor, path)
                return _scan(descriptor)
            finally:
                os.close(descriptor)

    def readlink(self, path: str) -> str:
        with self.at(path) as place:
            return os.readlink(place.name, dir_fd=place.directory)

    def filesystem(self, path: str) -> os.statvfs_result:
        """Return the sizes of the file system below ``path`` (not on Windows)."""
        with self.at(path) as place:
            assert place.directory is not None
            return os.statvfs(place.directory)

    # --- changing ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self, *paths: str) -> Iterator[None]:
        with self.echoes.changing(*paths):
            yield
            for path in paths:
                try:
                    found = self.stat(path)
                except OSError:
                    self.echoes.note(path, None)
                else:
                    self.echoes.note(path, found)

    def open(self, path: str, flags: int, mode: int) -> int:
        """Open a regular file and return its descriptor. A pipe or a device here is not one:
        opening it could wait for ever, or do something."""
        if not flags & (os.O_CREAT | os.O_TRUNC):
            return self._open(path, flags, mode)[0]
        with self.echoes.changing(path):
            descriptor, changed = self._open(path, flags, mode)
            if changed:
                self.echoes.note(path, os.fstat(descriptor))
            return descriptor

    def _open(self, path: str, flags: int, mode: int) -> tuple[int, bool]:
        """Open a file; return its descriptor, and whether that made or emptied the file."""
        write = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        with self.at(path, write=write) as place:
            made = False
            wanted = flags | _NO_FOLLOW | _NEVER_WAIT | _BINARY
            # What is there is looked at before it is emptied.
            opening = wanted & ~(os.O_TRUNC | os.O_CREAT | os.O_EXCL)
            if flags & os.O_CREAT:
                try:
                    new = wanted | os.O_CREAT | os.O_EXCL
                    descriptor = os.open(place.name, new, mode & 0o777, dir_fd=place.directory)
                    made = True
                except FileExistsError:
                    if flags & os.O_EXCL:
                        raise
            if not made:
                descriptor = os.open(place.name, opening, dir_fd=place.directory)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            if made and not _WINDOWS:
                os.fchmod(descriptor, mode & MODE_BITS)  # without the agent's own mask
            elif flags & os.O_TRUNC:
                os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, made or bool(flags & os.O_TRUNC)

    def remove(self, path: str) -> None:
        with self._changing(path), self.at(path, write=True) as place:
            os.unlink(place.name, dir_fd=place.directory)

    def rmdir(self, path: str) -> None:
        with self._changing(path), self.at(path, write=True) as place:
            os.rmdir(place.name, dir_fd=place.directory)

    def mkdir(self, path: str, mode: int) -> None:
        with self._changing(path), self.at(path, write=True) as place:
            os.mkdir(place.name, 0o700, dir_fd=place.directory)
            if place.directory is not None:
                descriptor = os.open(place.name, _LIST, dir_fd=place.directory)
                try:
                    os.fchmod(descriptor, mode & MODE_BITS)
                finally:
                    os.close(descriptor)

    def symlink(self, target: str, path: str) -> None:
        with self._changing(path), self.at(path, write=True) as place:
            os.symlink(target, place.name, dir_fd=place.directory)

    def rename(self, old: str, new: str, *, replace: bool) -> None:
        """Rename; without ``replace`` an existing ``new`` is ``EEXIST``."""
        with (
            self._changing(old, new),
            self.at(old, write=True) as source,
            self.at(new, write=True) as target,
        ):
            moved = os.stat(source.name, dir_fd=source.directory, follow_symlinks=False)
            self._refuse_if_hidden(moved, old)
            if not replace and _is_there(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
            os.replace(
                source.name, target.name, src_dir_fd=source.directory, dst_dir_fd=target.directory
            )

    def link(self, old: str, new: str) -> None:
        with (
            self._changing(old, new),
            self.at(old, write=True) as source,
            self.at(new, write=True) as target,
        ):
            os.link(
                source.name,
                target.name,
                src_dir_fd=source.directory,
                dst_dir_fd=target.directory,
                follow_symlinks=False,
            )

    def change(
        self,
        path: str,
        *,
        size: int | None = None,
        mode: int | None = None,
        times: tuple[int, int] | None = None,
    ) -> None:
        """Set a file's size, mode or times (access and modification, whole seconds)."""
        if times is not None and times[1] == UNCHANGED_S:
            return
        with self._changing(path):
            self._change(path, size, mode, times)

    def _change(
        self, path: str, size: int | None, mode: int | None, times: tuple[int, int] | None
    ) -> None:
        with self.at(path, write=True) as place:
            now = os.stat(place.name, dir_fd=place.directory, follow_symlinks=False)
            if stat.S_ISLNK(now.st_mode):
                if times is not None and os.utime in os.supports_follow_symlinks:
                    new = _new_times(now, times)
                    os.utime(place.name, ns=new, dir_fd=place.directory, follow_symlinks=False)
                return
            access = os.O_RDONLY if size is None else os.O_WRONLY
            if place.directory is None or not (stat.S_ISREG(now.st_mode) or size is not None):
                self._change_by_name(place, now, mode, times)
                if size is not None:
                    os.truncate(place.name, size)
                return
            try:
                descriptor = os.open(
                    place.name, access | _NO_FOLLOW | _NEVER_WAIT, dir_fd=place.directory
                )
            except PermissionError:
                # The owner may change the mode of what it may not read.
                self._change_by_name(place, now, mode, times)
                return
            try:
                change_open(descriptor, size=size, mode=mode, times=times)
            finally:
                os.close(descriptor)

    def _change_by_name(
        self,
        place: Place,
        now: os.stat_result,
        mode: int | None,
        times: tuple[int, int] | None,
    ) -> None:
        if mode is not None and mode & MODE_BITS != now.st_mode & MODE_BITS:
            self._chmod(place, mode & MODE_BITS)
        if times is not None:
            new = _new_times(now, times)
            if new != (now.st_atime_ns, now.st_mtime_ns):
                follow = os.utime not in os.supports_follow_symlinks
                os.utime(place.name, ns=new, dir_fd=place.directory, follow_symlinks=follow)

    @staticmethod
    def _chmod(place: Place, mode: int) -> None:
        """Change the mode of what is no link: a link put in its place meanwhile leads nowhere."""
        if sys.platform != "linux" or place.directory is None:
            follow = os.chmod not in os.supports_follow_symlinks
            os.chmod(place.name, mode, dir_fd=place.directory, follow_symlinks=follow)
            return
        held = os.open(place.name, os.O_PATH | _NO_FOLLOW, dir_fd=place.directory)
        try:
            if stat.S_ISLNK(os.fstat(held).st_mode):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place.name)
            Path(f"/proc/self/fd/{held}").chmod(mode)
        finally:
            os.close(held)


class Attributes(TypedDict, total=False):
    """What a client sets of a file: bytes, mode bits, seconds of the last access and change."""

    size: int
    mode: int
    times: tuple[int, int]


def change_open(
    descriptor: int,
    *,
    size: int | None = None,
    mode: int | None = None,
    times: tuple[int, int] | None = None,
) -> None:
    """Set an open file's size, mode or times; what is so already is left alone, because a watcher
    here would take it for a change."""
    if size is not None:
        os.ftruncate(descriptor, size)
    now = os.fstat(descriptor)
    if mode is not None and not _WINDOWS and mode & MODE_BITS != now.st_mode & MODE_BITS:
        os.fchmod(descriptor, mode & MODE_BITS)
    if times is not None and times[1] != UNCHANGED_S and os.utime in os.supports_fd:
        new = _new_times(now, times)
        if new != (now.st_atime_ns, now.st_mtime_ns):
            os.utime(descriptor, ns=new)


def _new_times(now: os.stat_result, times: tuple[int, int]) -> tuple[int, int]:
    """Return nanoseconds: a time that says the present second keeps its fraction."""
    old = (now.st_atime_ns, now.st_mtime_ns)
    new = [
        before if before // 10**9 == after else after * 10**9
        for before, after in zip(old, times, strict=True)
    ]
    # Access times are this computer's business unless something else is set with them.
    return (new[0], new[1]) if new[1] != old[1] else old


def _is_there(place: Place) -> bool:
    try:
        os.stat(place.name, dir_fd=place.directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _scan(place: int | str) -> list[tuple[str, os.stat_result]]:
    found = []
    with os.scandir(place) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found.append((entry.name, entry.stat(follow_symlinks=False)))
    return found
