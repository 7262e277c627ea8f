"""What a container may use: limits as plain data, independent of the cgroup version.

The launcher's side imports this module; it stays free of heavy imports.
"""

from __future__ import annotations

from collections.abc import Mapping

from deskd.record import Record

TYPE_CHECKING = False  # known to type checkers; see deskd.record
if TYPE_CHECKING:
    from typing import Any

UNLIMITED = -1


class DeviceRule(Record):
    """One line of a device allow-list. ``kind`` is ``a``, ``b`` or ``c``; ``None`` numbers mean
    any; ``access`` is a subset of ``rwm``."""

    kind: str
    major: int | None
    minor: int | None
    access: str
    allow: bool = True


class Throttle(Record):
    """A rate for one block device: bytes or operations a second."""

    major: int
    minor: int
    rate: int


class Limits(Record):
    """Limits with the Engine API's meaning: 0 or ``""`` leaves the kernel's default, -1 is
    unlimited. Memory is bytes, CPU times microseconds; ``memory_swap_bytes`` is memory plus swap.
    ``devices=None`` leaves every device open (a privileged container)."""

    memory_bytes: int = 0
    memory_swap_bytes: int = 0
    memory_reservation_bytes: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool = False
    cpu_shares: int = 0
    cpu_period_us: int = 0
    cpu_quota_us: int = 0
    cpu_rt_period_us: int = 0
    cpu_rt_runtime_us: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int = 0
    blkio_weight: int = 0
    blkio_weight_devices: tuple[Throttle, ...] = ()
    read_bps: tuple[Throttle, ...] = ()
    write_bps: tuple[Throttle, ...] = ()
    read_iops: tuple[Throttle, ...] = ()
    write_iops: tuple[Throttle, ...] = ()
    devices: tuple[DeviceRule, ...] | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Limits:
        """Rebuild from what ``json`` makes of this structure."""
        values = dict(data)
        for name in _THROTTLES:
            values[name] = tuple(Throttle(**item) for item in values[name])
        if values["devices"] is not None:
            values["devices"] = tuple(DeviceRule(**item) for item in values["devices"])
        return cls(**values)


_THROTTLES = ("blkio_weight_devices", "read_bps", "write_bps", "read_iops", "write_iops")
