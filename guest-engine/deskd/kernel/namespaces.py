"""Namespaces: unshare(2), setns(2) and their flags."""

from __future__ import annotations

import os
from collections.abc import Sequence

from deskd.kernel import process
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
    """setns(2). With a process's pidfd it joins all of its namespaces that ``flags`` names, or
    none."""
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


def identity(pid: int | str, name: str) -> tuple[int, int]:
    """Return what tells one namespace from another."""
    found = os.stat(f"/proc/{pid}/ns/{name}")
    return found.st_dev, found.st_ino


def same(pid: int | str, name: str) -> bool:
    """Say whether this process already is in that process's namespace."""
    return identity(pid, name) == identity("self", name)


def write_maps(
    pid: int, uid_map: Sequence[tuple[int, int, int]], gid_map: Sequence[tuple[int, int, int]]
) -> None:
    """Say which IDs the user namespace of a new process has (user_namespaces(7))."""
    for name, entries in (("uid_map", uid_map), ("gid_map", gid_map)):
        text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in entries)
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def open_user_namespace(
    uid_map: Sequence[tuple[int, int, int]], gid_map: Sequence[tuple[int, int, int]]
) -> int:
    """Make a user namespace that nobody is in; return its descriptor. Only for a single-threaded
    process: a child lives in it for a moment."""
    waiting, releasing = os.pipe2(os.O_CLOEXEC)
    pid = process.clone(CLONE_NEWUSER)
    if pid == 0:
        os.close(releasing)
        os.read(waiting, 1)
        os._exit(0)
    os.close(waiting)
    try:
        write_maps(pid, uid_map, gid_map)
        return open_namespace(pid, "user")
    finally:
        os.close(releasing)
        _reap(pid)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return  # the launcher's children have SIGCHLD ignored: the kernel has reaped it
