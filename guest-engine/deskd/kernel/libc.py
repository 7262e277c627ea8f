"""The C library, loaded once with its signatures: everything below ``deskd.kernel`` calls it.

Imported by the launcher before it forks; nothing here changes after import.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_LONG = ctypes.c_long
_INT = ctypes.c_int
_TEXT = ctypes.c_char_p
_POINTER = ctypes.c_void_p
_ULONG = ctypes.c_ulong

libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = (_TEXT, _TEXT, _TEXT, _ULONG, _TEXT)
libc.umount2.argtypes = (_TEXT, _INT)
libc.setns.argtypes = (_INT, _INT)
libc.unshare.argtypes = (_INT,)
libc.prctl.argtypes = (_INT, _ULONG, _ULONG, _ULONG, _ULONG)
libc.setdomainname.argtypes = (_TEXT, ctypes.c_size_t)
libc.syscall.argtypes = (_LONG, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER)
libc.syscall.restype = _LONG

# A second handle on the same library that keeps the interpreter's lock, for clone3 alone.
libc_locked = ctypes.PyDLL(None, use_errno=True)
libc_locked.syscall.argtypes = (_LONG, _POINTER, _POINTER)
libc_locked.syscall.restype = _LONG

ARCHITECTURE: Final = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64"}.get(
    os.uname().machine, ""
)

SYSCALL_TABLE: Final[dict[str, tuple[int, int]]] = {
    # name: (x86-64, arm64); arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h
    "pivot_root": (155, 41),
    "capget": (125, 90),
    "capset": (126, 91),
    "keyctl": (250, 219),
    "seccomp": (317, 277),
    "bpf": (321, 280),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "clone3": (435, 435),
    "close_range": (436, 436),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
}

if ARCHITECTURE not in ("x86_64", "arm64"):  # pragma: no cover
    raise ImportError(f"deskd runs on x86-64 and arm64, not on {os.uname().machine}")

SYSCALLS: Final[dict[str, int]] = {
    name: numbers[0 if ARCHITECTURE == "x86_64" else 1] for name, numbers in SYSCALL_TABLE.items()
}

_Argument = int | bytes | ctypes.Structure | ctypes.Array[ctypes.c_char] | None


def failure(path: str | None = None) -> OSError:
    """Make the ``OSError`` of the call that has just failed."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path)


def check(result: int, path: str | None = None) -> int:
    """Return ``result``, or raise the ``OSError`` that -1 stands for."""
    if result == -1:
        raise failure(path)
    return result


def syscall(name: str, *arguments: _Argument, path: str | None = None) -> int:
    """Make a system call that the C library has no function for."""
    values = [
        ctypes.addressof(value) if isinstance(value, ctypes.Structure) else value
        for value in arguments
    ]
    values += [None] * (6 - len(values))
    result: int = libc.syscall(SYSCALLS[name], *values)
    return check(result, path)
