"""The whole machine's memory: ``/proc/meminfo`` and ``/proc/pressure/memory`` of proc(5)."""

from __future__ import annotations

from deskd.record import Record


class MachineMemory(Record):
    """In bytes. ``cache`` can be given back at no loss but time, ``used`` cannot."""

    total: int
    free: int
    available: int
    cache: int
    pressure_percent: float  # of the last 10 s, in which some process waited for memory

    @property
    def used(self) -> int:
        return max(0, self.total - self.free - self.cache)


def read_machine_memory(root: str = "/proc") -> MachineMemory:
    """Return how the memory is used now."""
    fields: dict[str, int] = {}
    with open(f"{root}/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            fields[name] = int(value.split()[0]) * 1024
    # Shared memory counts as cached there, and is no cache: nothing can read it again.
    cache = fields["Cached"] + fields["Buffers"] + fields["SReclaimable"] - fields["Shmem"]
    return MachineMemory(
        total=fields["MemTotal"],
        free=fields["MemFree"],
        available=fields["MemAvailable"],
        cache=max(0, cache),
        pressure_percent=_pressure_percent(f"{root}/pressure/memory"),
    )


def _pressure_percent(path: str) -> float:
    """Return the first ``avg10``; 0 where the kernel has no pressure stall information."""
    try:
        with open(path, encoding="ascii") as file:
            words = file.readline().split()
    except OSError:
        return 0.0
    found = [word.partition("=")[2] for word in words if word.startswith("avg10=")]
    return float(found[0]) if found else 0.0
