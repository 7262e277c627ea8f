"""Namespaces: unshare(2), setns(2) and their flags."""

from __future__ import annotations

import os

from deskd.kernel.libc import check, libc

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

FLAGS = {
    "mnt": CLONE_NEWNS,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "net": CLONE_NEWNET,
    "pid": CLONE_NEWPID,
    "cgroup": CLONE_NEWCGROUP,
    "user": CLONE_NEWUSER,
}
"""Namespace names, as /proc/PID/ns spells them, and their flags."""


def unshare(flags: int) -> None:
    """unshare(2)."""
    check(libc.unshare(flags))


def setns(fd: int, flags: int) -> None:
    """setns(2)."""
    check(libc.setns(fd, flags))


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    data = name.encode()
    check(libc.setdomainname(data, len(data)))


def open_namespace(pid: int | str, name: str) -> int:
    """Open /proc/PID/ns/NAME."""
    return os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)


def enter(pid: int | str, name: str) -> None:
    """Join one namespace of another process."""
    fd = open_namespace(pid, name)
    try:
        setns(fd, FLAGS[name])
    finally:
        os.close(fd)


def same(pid: int | str, name: str) -> bool:
    """Say whether this process already is in that process's namespace."""
    theirs, own = os.stat(f"/proc/{pid}/ns/{name}"), os.stat(f"/proc/self/ns/{name}")
    return (theirs.st_dev, theirs.st_ino) == (own.st_dev, own.st_ino)
