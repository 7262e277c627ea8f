"""fanotify(7) for whole file systems, and what shows a change to inotify's watchers."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from deskd.kernel.libc import check, libc

_INIT_FLAGS = 0x1 | 0x2 | 0x10  # FAN_CLOEXEC, FAN_NONBLOCK, FAN_UNLIMITED_QUEUE (linux/fanotify.h)
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100
_MODIFY, _CLOSE_WRITE = 0x2, 0x8
_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_READ_BYTES = 1 << 14

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH, _AT_STATX_FORCE_SYNC = 0x100, 0x1000, 0x2000
_STATX_MTIME, _STATX_INO, _STATX_SIZE = 0x40, 0x100, 0x200
_STATX_BYTES = 256
_INO_SIZE = struct.Struct("=QQ")  # struct statx, from 32
_TIME = struct.Struct("=qI")  # struct statx_timestamp; the last change's is at 112
_TIMESPECS = struct.Struct("=qqqq")
_UTIME_OMIT = (1 << 30) - 2

libc.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
libc.fanotify_mark.argtypes = (
    ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p,
)  # fmt: skip
libc.statx.argtypes = (
    ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p,
)  # fmt: skip
libc.utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)


class FileState(NamedTuple):
    """How a file is now: its inode's number, its last change (nanoseconds since 1970), its size."""

    inode: int
    mtime_ns: int
    size: int


class WriteWatch:
    """Tells which files of some file systems this machine's programs wrote. ``close`` it."""

    def __init__(self) -> None:
        """Raises ``OSError`` without CAP_SYS_ADMIN, or where the kernel lacks fanotify."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME | os.O_NONBLOCK
        self._descriptor = check(libc.fanotify_init(_INIT_FLAGS, flags), "fanotify")

    def add(self, mount: str) -> None:
        """Watch the whole file system that is mounted there. Raises ``OSError``."""
        flags, mask = _MARK_ADD | _MARK_FILESYSTEM, _MODIFY | _CLOSE_WRITE
        check(
            libc.fanotify_mark(self._descriptor, flags, mask, _AT_FDCWD, os.fsencode(mount)), mount
        )

    def fileno(self) -> int:
        return self._descriptor

    def written(self) -> Iterator[FileState]:
        """Yield how some files are that were written since the last call; never waits. While there
        are more, the descriptor is readable."""
        try:
            events = os.read(self._descriptor, _READ_BYTES)
        except OSError:  # none; or a file that was written and cannot be opened
            return
        position = 0
        while position < len(events):
            length, *_, file, _pid = _EVENT.unpack_from(events, position)
            position += length
            if file < 0:
                continue
            try:
                yield file_state(file)
            except OSError:
                continue  # gone meanwhile
            finally:
                os.close(file)

    def close(self) -> None:
        os.close(self._descriptor)


def file_state(file: str | int) -> FileState:
    """Return how a path, or what a descriptor holds, is now, asking the server of a network file
    system. Raises ``OSError``."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    directory, path, flags = _AT_FDCWD, b"", _AT_STATX_FORCE_SYNC
    if isinstance(file, str):
        path, flags = os.fsencode(file), flags | _AT_SYMLINK_NOFOLLOW
    else:
        directory, flags = file, flags | _AT_EMPTY_PATH
    mask = _STATX_MTIME | _STATX_INO | _STATX_SIZE
    check(libc.statx(directory, path, flags, mask, buffer))
    inode, size = _INO_SIZE.unpack_from(buffer, 32)
    seconds, nanoseconds = _TIME.unpack_from(buffer, 112)
    return FileState(inode, seconds * 1_000_000_000 + nanoseconds, size)


def set_mtime(path: str, mtime_ns: int) -> None:
    """Set the time of the last change and nothing else, which inotify tells as a change of the
    content. Raises ``OSError``."""
    seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
    times = _TIMESPECS.pack(0, _UTIME_OMIT, seconds, nanoseconds)
    check(libc.utimensat(_AT_FDCWD, os.fsencode(path), times, _AT_SYMLINK_NOFOLLOW), path)
