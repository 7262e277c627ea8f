"""What this machine's control groups can do, as far as wishes are checked against it."""

from __future__ import annotations

import os

from deskd.kernel.cgroup import files
from deskd.kernel.cgroup.hierarchy import Hierarchy, detect
from deskd.record import Record


class Features(Record):
    """``cpus`` and ``memory_nodes`` are those that a container may be bound to."""

    version: int
    cpus: frozenset[int]
    memory_nodes: frozenset[int]
    swap_limit: bool
    realtime: bool


def look(hierarchy: Hierarchy | None = None) -> Features:
    """Ask the kernel."""
    found = hierarchy or detect()
    if found.version == 2:
        return Features(
            version=2,
            cpus=_numbers(files.read(f"{found.root}/cpuset.cpus.effective")) or _own_cpus(),
            memory_nodes=_numbers(files.read(f"{found.root}/cpuset.mems.effective"))
            or frozenset((0,)),
            # The root has no such file, and a new group is not made only to look at it.
            swap_limit=True,
            realtime=False,
        )
    cpuset = found.controllers.get("cpuset", "")
    return Features(
        version=1,
        cpus=_numbers(files.read(f"{cpuset}/cpuset.cpus")) or _own_cpus(),
        memory_nodes=_numbers(files.read(f"{cpuset}/cpuset.mems")) or frozenset((0,)),
        swap_limit=_has(found, "memory", "memory.memsw.limit_in_bytes"),
        realtime=_has(found, "cpu", "cpu.rt_runtime_us"),
    )


def _has(hierarchy: Hierarchy, controller: str, name: str) -> bool:
    place = hierarchy.controllers.get(controller, "")
    return bool(place) and os.path.exists(f"{place}/{name}")


def _own_cpus() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0))


def _numbers(text: str) -> frozenset[int]:
    """Read the kernel's list format (``0-3,5``), see cpuset(7)."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
