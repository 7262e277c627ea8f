"""Mounts: thin wrappers of the system calls, old and new. See mount(2), mount_setattr(2),
open_tree(2), move_mount(2), openat2(2), pivot_root(2)."""

from __future__ import annotations

import ctypes
import os

from deskd.kernel.libc import check, libc, syscall

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 1 << 7
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

FLAGS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "sync": MS_SYNCHRONOUS,
    "dirsync": MS_DIRSYNC,
    "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME,
    "relatime": MS_RELATIME,
    "strictatime": MS_STRICTATIME,
}
"""Flag words of a ``MountStep`` for ``mount``."""

WORDS: dict[str, tuple[int, bool]] = {
    "defaults": (0, True),
    "async": (MS_SYNCHRONOUS, False),
    "atime": (MS_NOATIME, False),
    "bind": (MS_BIND, True),
    "dev": (MS_NODEV, False),
    "diratime": (MS_NODIRATIME, False),
    "dirsync": (MS_DIRSYNC, True),
    "exec": (MS_NOEXEC, False),
    "mand": (MS_MANDLOCK, True),
    "noatime": (MS_NOATIME, True),
    "nodev": (MS_NODEV, True),
    "nodiratime": (MS_NODIRATIME, True),
    "noexec": (MS_NOEXEC, True),
    "nomand": (MS_MANDLOCK, False),
    "norelatime": (MS_RELATIME, False),
    "nostrictatime": (MS_STRICTATIME, False),
    "nosuid": (MS_NOSUID, True),
    "rbind": (MS_BIND | MS_REC, True),
    "relatime": (MS_RELATIME, True),
    "ro": (MS_RDONLY, True),
    "rw": (MS_RDONLY, False),
    "strictatime": (MS_STRICTATIME, True),
    "suid": (MS_NOSUID, False),
    "sync": (MS_SYNCHRONOUS, True),
}
"""The words of mount(8) that are flags, and whether each sets or clears its own."""

PROPAGATION_WORDS = {
    f"{'r' if deep else ''}{name}": flag | deep
    for name, flag in (
        ("private", MS_PRIVATE),
        ("shared", MS_SHARED),
        ("slave", MS_SLAVE),
        ("unbindable", MS_UNBINDABLE),
    )
    for deep in (0, MS_REC)
}
"""The words of mount(8) that say how mounts below travel."""

PROPAGATION = {"private": MS_PRIVATE, "slave": MS_SLAVE, "shared": MS_SHARED}

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000

ATTRIBUTES = {
    "ro": MOUNT_ATTR_RDONLY,
    "nosuid": MOUNT_ATTR_NOSUID,
    "nodev": MOUNT_ATTR_NODEV,
    "noexec": MOUNT_ATTR_NOEXEC,
}
"""Flag words of a ``MountStep`` for ``mount_setattr``."""

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_EMPTY_PATHS = 0x4 | 0x40

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    check(
        libc.mount(
            source.encode() or None,
            os.fsencode(target),
            kind.encode() or None,
            flags,
            os.fsencode(data) or None,
        ),
        target,
    )


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    check(libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    syscall("pivot_root", os.fsencode(new_root), os.fsencode(put_old), path=new_root)


def open_tree(path: str, *, directory_fd: int = AT_FDCWD, recursive: bool = False) -> int:
    """Clone the mount at ``path`` into a detached one; return its file descriptor. An empty
    ``path`` means ``directory_fd`` itself."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    flags |= AT_RECURSIVE if recursive else 0
    flags |= 0 if path else AT_EMPTY_PATH
    return syscall("open_tree", directory_fd, os.fsencode(path), flags, path=path or None)


def move_mount(tree_fd: int, target_fd: int) -> None:
    """Attach the detached mount ``tree_fd`` on the directory or file ``target_fd``."""
    syscall("move_mount", tree_fd, b"", target_fd, b"", _MOVE_MOUNT_EMPTY_PATHS)


def mount_setattr(
    tree_fd: int, *, set_flags: int = 0, propagation: int = 0, recursive: bool = False
) -> None:
    """Change the attributes of the mount ``tree_fd`` (and with ``recursive`` those below)."""
    attributes = _MountAttr(set_flags, 0, propagation, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    syscall("mount_setattr", tree_fd, b"", flags, attributes, ctypes.sizeof(attributes))


def map_ids(tree_fd: int, user_namespace: int) -> None:
    """Show the detached mount ``tree_fd`` with its files' owners mapped as ``user_namespace``
    maps IDs (Linux 5.12; as a layer of an overlay Linux 5.19)."""
    attributes = _MountAttr(MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
    size = ctypes.sizeof(attributes)
    syscall("mount_setattr", tree_fd, b"", AT_EMPTY_PATH, attributes, size)


def openat2(directory_fd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2); the descriptor is close-on-exec."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return syscall("openat2", directory_fd, os.fsencode(path), how, ctypes.sizeof(how), path=path)
