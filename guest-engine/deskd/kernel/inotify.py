"""inotify(7): being told that a file grew or was replaced, instead of asking again and again."""

from __future__ import annotations

import ctypes
import os

IN_MODIFY = 0x00000002
IN_CREATE = 0x00000100
IN_MOVED_TO = 0x00000080
IN_CLOEXEC = os.O_CLOEXEC
IN_NONBLOCK = os.O_NONBLOCK

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


class Watch:
    """One inotify descriptor that watches a directory's entries. ``close`` it."""

    def __init__(self, directory: str, mask: int = IN_MODIFY | IN_CREATE | IN_MOVED_TO) -> None:
        """Raises ``OSError`` where the directory is missing or the user's watches are used up."""
        self._descriptor: int = _libc.inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
        if self._descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "inotify")
        if _libc.inotify_add_watch(self._descriptor, os.fsencode(directory), mask) < 0:
            number = ctypes.get_errno()
            os.close(self._descriptor)
            raise OSError(number, os.strerror(number), directory)

    def fileno(self) -> int:
        return self._descriptor

    def drain(self) -> None:
        """Throw away what was told; never waits."""
        try:
            while os.read(self._descriptor, 65536):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
