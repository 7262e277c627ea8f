"""openat2(2): open a path that cannot leave a directory, whatever symbolic links lie on it."""

from __future__ import annotations

import ctypes
import os

SYS_OPENAT2 = 437  # the same number on every architecture (unified table)

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def openat2(
    dir_fd: int, path: str, flags: int, mode: int = 0, resolve: int = RESOLVE_IN_ROOT
) -> int:
    """Open ``path`` from ``dir_fd``; the descriptor is closed on exec.

    With ``RESOLVE_IN_ROOT`` the directory is "/" for absolute paths, ``..`` and symbolic links.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    while True:
        fd = int(
            _syscall(
                ctypes.c_long(SYS_OPENAT2),
                ctypes.c_int(dir_fd),
                ctypes.c_char_p(os.fsencode(path)),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
            )
        )
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (4, 11):  # EINTR; EAGAIN: a rename raced with the walk
            raise OSError(number, os.strerror(number), path)
