"""What a container sees of its own limits below /sys/fs/cgroup, in both cgroup versions.

Tests ask for limits in the Engine API's units; which file holds them, and in which form, is known
here alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")

UNLIMITED = -1
# Version 1 tells "no limit" as the largest multiple of a page.
_V1_UNLIMITED = (1 << 63) - 4096


@dataclass(frozen=True)
class Rates:
    """The limits of one block device, in bytes and operations a second."""

    read_bps: int = UNLIMITED
    write_bps: int = UNLIMITED
    read_iops: int = UNLIMITED
    write_iops: int = UNLIMITED


@dataclass(frozen=True)
class Seen:
    """``memory_swap_bytes`` is memory plus swap, as in the Engine API. ``cpu_weight`` is in the
    kernel's own unit: shares in version 1, a weight in version 2."""

    memory_bytes: int
    memory_swap_bytes: int
    reservation_bytes: int
    cpu_weight: int
    cpu_quota_us: int
    cpu_period_us: int
    cpuset_cpus: str
    cpuset_mems: str
    pids: int
    rates: dict[str, Rates]


class Layout(Protocol):
    """One version. ``files`` are read in the container; ``parse`` understands their texts."""

    @property
    def version(self) -> int: ...

    @property
    def files(self) -> tuple[str, ...]: ...

    @property
    def no_reservation(self) -> int: ...

    @property
    def discarded(self) -> frozenset[str]:
        """Fields of HostConfig that this version lacks: the engine discards them and says so."""
        ...

    def choose(self, v1: T, v2: T) -> T:
        """Return what is meant for this version."""
        ...

    def parse(self, texts: dict[str, str]) -> Seen: ...

    def cpu_weight(self, shares: int) -> int:
        """Return what ``--cpu-shares`` should have become."""
        ...


class V1:
    """Each controller has a directory of its own."""

    version = 1
    no_reservation = UNLIMITED
    discarded: frozenset[str] = frozenset()
    files = (
        "memory/memory.limit_in_bytes",
        "memory/memory.memsw.limit_in_bytes",
        "memory/memory.soft_limit_in_bytes",
        "cpu/cpu.shares",
        "cpu/cpu.cfs_quota_us",
        "cpu/cpu.cfs_period_us",
        "cpuset/cpuset.cpus",
        "cpuset/cpuset.mems",
        "pids/pids.max",
        "blkio/blkio.throttle.read_bps_device",
        "blkio/blkio.throttle.write_bps_device",
        "blkio/blkio.throttle.read_iops_device",
        "blkio/blkio.throttle.write_iops_device",
    )

    def choose(self, v1: T, v2: T) -> T:
        return v1

    def parse(self, texts: dict[str, str]) -> Seen:
        def memory(name: str) -> int:
            value = int(texts[f"memory/memory.{name}_in_bytes"])
            return UNLIMITED if value >= _V1_UNLIMITED else value

        rates: dict[str, dict[str, int]] = {}
        for key in ("read_bps", "write_bps", "read_iops", "write_iops"):
            for line in texts[f"blkio/blkio.throttle.{key}_device"].splitlines():
                device, rate = line.split()
                rates.setdefault(device, {})[key] = int(rate)
        pids = texts["pids/pids.max"]
        return Seen(
            memory_bytes=memory("limit"),
            memory_swap_bytes=memory("memsw.limit"),
            reservation_bytes=memory("soft_limit"),
            cpu_weight=int(texts["cpu/cpu.shares"]),
            cpu_quota_us=int(texts["cpu/cpu.cfs_quota_us"]),
            cpu_period_us=int(texts["cpu/cpu.cfs_period_us"]),
            cpuset_cpus=texts["cpuset/cpuset.cpus"],
            cpuset_mems=texts["cpuset/cpuset.mems"],
            pids=UNLIMITED if pids == "max" else int(pids),
            rates={device: Rates(**values) for device, values in rates.items()},
        )

    def cpu_weight(self, shares: int) -> int:
        return shares


class V2:
    """One directory. Swap has a limit of its own there, without the memory."""

    version = 2
    no_reservation = 0
    discarded = frozenset(("MemorySwappiness", "OomKillDisable"))
    files = (
        "memory.max",
        "memory.swap.max",
        "memory.low",
        "cpu.weight",
        "cpu.max",
        "cpuset.cpus",
        "cpuset.mems",
        "pids.max",
        "io.max",
    )

    def choose(self, v1: T, v2: T) -> T:
        return v2

    def parse(self, texts: dict[str, str]) -> Seen:
        def number(text: str) -> int:
            return UNLIMITED if text == "max" else int(text)

        quota, period = texts["cpu.max"].split()
        memory, swap = number(texts["memory.max"]), number(texts["memory.swap.max"])
        names = {
            "rbps": "read_bps", "wbps": "write_bps", "riops": "read_iops", "wiops": "write_iops",
        }  # fmt: skip
        rates = {}
        for line in texts["io.max"].splitlines():
            device, *pairs = line.split()
            values = (pair.split("=") for pair in pairs)
            rates[device] = Rates(**{names[key]: number(value) for key, value in values})
        return Seen(
            memory_bytes=memory,
            memory_swap_bytes=UNLIMITED if swap == UNLIMITED else memory + swap,
            reservation_bytes=number(texts["memory.low"]),
            cpu_weight=int(texts["cpu.weight"]),
            cpu_quota_us=number(quota),
            cpu_period_us=int(period),
            cpuset_cpus=texts["cpuset.cpus"],
            cpuset_mems=texts["cpuset.mems"],
            pids=number(texts["pids.max"]),
            rates=rates,
        )

    def cpu_weight(self, shares: int) -> int:
        # 2..262144 onto 1..10000, as every OCI runtime does it.
        return 1 + (shares - 2) * 9999 // 262142


LAYOUTS: dict[str, Layout] = {"1": V1(), "2": V2()}
"""By the engine's own word for it (``CgroupVersion`` of /info)."""
