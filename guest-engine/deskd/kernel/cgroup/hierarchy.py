"""Which cgroup hierarchies this machine has. See cgroups(7).

A machine counts as version 1 as soon as one controller is mounted the old way (a hybrid host):
its empty-handed version 2 tree is left alone then.
"""

from __future__ import annotations

from collections.abc import Mapping

from deskd.errors import Unsupported
from deskd.record import Record

V1_CONTROLLERS = frozenset(
    (
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "misc",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
        "rdma",
    )
)


class Hierarchy(Record):
    """``root`` is the mount point of the version 2 tree. On version 1 ``controllers`` maps each
    controller (also ``name=systemd``) to its mount point."""

    version: int
    root: str
    controllers: Mapping[str, str]

    def mount_points(self) -> dict[str, list[str]]:
        """Group the version 1 controllers by mount point, in a stable order."""
        groups: dict[str, list[str]] = {}
        for controller, path in self.controllers.items():
            groups.setdefault(path, []).append(controller)
        return groups


def parse_mountinfo(text: str) -> Hierarchy:
    """Find the hierarchies in the text of /proc/PID/mountinfo.

    Raises ``Unsupported`` where there is none at all.
    """
    controllers: dict[str, str] = {}
    unified = ""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        path = left.split(" ")[4]
        if kind == "cgroup2" and not unified:
            unified = path
        elif kind == "cgroup":
            for word in options.split(","):
                if word in V1_CONTROLLERS or word.startswith("name="):
                    controllers.setdefault(word, path)
    if any(name in V1_CONTROLLERS for name in controllers):
        return Hierarchy(1, unified, controllers)
    if unified:
        return Hierarchy(2, unified, {})
    raise Unsupported(
        "no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup (CONFIG_CGROUPS)"
    )


def detect() -> Hierarchy:
    """Look at this process's mounts."""
    with open("/proc/self/mountinfo") as file:
        return parse_mountinfo(file.read())
