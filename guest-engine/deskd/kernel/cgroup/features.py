"""What this machine's control groups can do, as far as wishes are checked against it."""

from __future__ import annotations

import os

from deskd.kernel.cgroup import files
from deskd.kernel.cgroup.hierarchy import Hierarchy, detect
from deskd.record import Record


class Features(Record):
    """``cpus`` and ``memory_nodes`` are those that a container may be bound to. ``io_weight`` and
    ``io_rates`` are what block devices can be given."""

    version: int
    cpus: frozenset[int]
    memory_nodes: frozenset[int]
    swap_limit: bool
    realtime: bool
    controllers: frozenset[str] = frozenset()
    io_weight: bool = True
    io_rates: bool = True


def look(hierarchy: Hierarchy | None = None) -> Features:
    """Ask the kernel."""
    found = hierarchy or detect()
    if found.version == 2:
        memory, io = _group_with(found, "memory.max"), _group_with(found, "io.max")
        return Features(
            version=2,
            cpus=_numbers(files.read(f"{found.root}/cpuset.cpus.effective")) or _own_cpus(),
            memory_nodes=_numbers(files.read(f"{found.root}/cpuset.mems.effective"))
            or frozenset((0,)),
            swap_limit=not memory or os.path.exists(f"{memory}/memory.swap.max"),
            realtime=False,
            controllers=frozenset(files.read(f"{found.root}/cgroup.controllers").split()),
            io_weight=not io
            or any(os.path.exists(f"{io}/{name}") for name in ("io.weight", "io.bfq.weight")),
            io_rates="io" in files.read(f"{found.root}/cgroup.controllers").split(),
        )
    cpuset = found.controllers.get("cpuset", "")
    return Features(
        version=1,
        cpus=_numbers(files.read(f"{cpuset}/cpuset.cpus")) or _own_cpus(),
        memory_nodes=_numbers(files.read(f"{cpuset}/cpuset.mems")) or frozenset((0,)),
        swap_limit=_has(found, "memory", "memory.memsw.limit_in_bytes"),
        realtime=_has(found, "cpu", "cpu.rt_runtime_us"),
        controllers=frozenset(found.controllers),
        # Only groups below the root have weights. BFQ's counters are also there.
        io_weight=any(
            _has(found, "blkio", name) for name in ("blkio.weight", "blkio.bfq.io_service_bytes")
        ),
        io_rates=_has(found, "blkio", "blkio.throttle.read_bps_device"),
    )


def _group_with(hierarchy: Hierarchy, name: str) -> str:
    """Return a group of version 2 with this file, ``""`` where there is none yet: the root itself
    has no limits, and a group is not made only to look at it."""
    for entry in os.scandir(hierarchy.root):
        if entry.is_dir(follow_symlinks=False) and os.path.exists(f"{entry.path}/{name}"):
            return entry.path
    return ""


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
