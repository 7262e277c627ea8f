"""What a control group has of the machine's memory, and the most that it ever had.

``memory.stat`` is described in the kernel's admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory.
"""

from __future__ import annotations

from collections.abc import Mapping

from deskd.record import Record

# What a group holds and nothing but its end gives back: of version 2, or of version 1.
_HELD_V2 = ("anon", "shmem", "slab_unreclaimable", "kernel_stack", "pagetables", "percpu", "sock")
_HELD_V1 = ("total_rss", "total_shmem")


class MemoryReading(Record):
    """One look at a group, in bytes; all are 0 where the group or its controller is not there.

    ``usage`` is what the kernel charges it with, page cache included, and ``peak`` the highest that
    this ever was. ``held`` is the part that only its end gives back, ``cache`` the part that the
    kernel can take back at once.
    """

    usage: int = 0
    peak: int = 0
    held: int = 0
    cache: int = 0


def reading(usage: int, peak: int, stats: Mapping[str, int]) -> MemoryReading:
    """Return the reading of a group with these ``memory.stat``."""
    return MemoryReading(usage, max(usage, peak), held_bytes(stats), cache_bytes(stats))


def held_bytes(stats: Mapping[str, int]) -> int:
    """Return what a group holds by its ``memory.stat``: no page cache."""
    names = _HELD_V2 if "anon" in stats else _HELD_V1
    return sum(stats.get(name, 0) for name in names)


def cache_bytes(stats: Mapping[str, int]) -> int:
    """Return what the kernel can take back. Files of a tmpfs are counted as cache there and are
    none, since nothing can read them again."""
    if "anon" in stats:
        files = stats.get("file", 0) - stats.get("shmem", 0)
        return max(files, 0) + stats.get("slab_reclaimable", 0)
    return max(stats.get("total_cache", 0) - stats.get("total_shmem", 0), 0)
