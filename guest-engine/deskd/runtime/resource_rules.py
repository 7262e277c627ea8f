"""Resource wishes of ``HostConfig`` as limits of the kernel's units. Pure, but for the numbers of
block devices that were named by path."""

from __future__ import annotations

import os
import re
import resource
import stat
from collections.abc import Sequence

from deskd.domain.container import HostConfig, ThrottleDevice
from deskd.errors import InvalidArgument
from deskd.kernel.cgroup.limits import UNLIMITED, Limits, Throttle
from deskd.runtime.confinement import device_rules
from deskd.runtime.plan import Rlimit

MINIMUM_MEMORY_BYTES = 6 * 1024 * 1024
DEFAULT_CPU_PERIOD_US = 100_000

_RLIMITS = {
    "as": resource.RLIMIT_AS,
    "core": resource.RLIMIT_CORE,
    "cpu": resource.RLIMIT_CPU,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "locks": 10,
    "memlock": resource.RLIMIT_MEMLOCK,
    "msgqueue": 12,
    "nice": 13,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "rss": resource.RLIMIT_RSS,
    "rtprio": 14,
    "rttime": 15,
    "sigpending": 11,
    "stack": resource.RLIMIT_STACK,
}


def limits(host: HostConfig) -> Limits:
    """Work out a container's limits. Raises ``InvalidArgument`` for contradictions."""
    _check_memory(host)
    swap = host.memory_swap
    if host.memory > 0 and swap == 0:
        swap = host.memory * 2
    period, quota = host.cpu_period, host.cpu_quota
    if host.nano_cpus:
        if period or quota:
            raise InvalidArgument("conflicting options: CPU quota or period and --cpus")
        if host.nano_cpus < 0 or host.nano_cpus > (os.cpu_count() or 1) * 1_000_000_000:
            raise InvalidArgument(
                f"range of CPUs is from 0.01 to {os.cpu_count()}.00, "
                f"as there are only {os.cpu_count()} CPUs available"
            )
        period = DEFAULT_CPU_PERIOD_US
        quota = host.nano_cpus * period // 1_000_000_000
    if period and not 1000 <= period <= 1_000_000:
        raise InvalidArgument("CPU cfs period must be between 1000 (1 ms) and 1000000 (1 s)")
    if 0 < quota < 1000:
        raise InvalidArgument("CPU cfs quota cannot be less than 1000 (1 ms)")
    return Limits(
        memory_bytes=host.memory,
        memory_swap_bytes=swap,
        memory_reservation_bytes=host.memory_reservation,
        memory_swappiness=host.memory_swappiness if host.memory_swappiness != -1 else None,
        oom_kill_disable=bool(host.oom_kill_disable),
        cpu_shares=host.cpu_shares,
        cpu_period_us=period,
        cpu_quota_us=quota,
        cpu_rt_period_us=host.cpu_realtime_period,
        cpu_rt_runtime_us=host.cpu_realtime_runtime,
        cpuset_cpus=host.cpuset_cpus,
        cpuset_mems=host.cpuset_mems,
        pids=0 if host.pids_limit is None else host.pids_limit or UNLIMITED,
        blkio_weight=host.blkio_weight,
        blkio_weight_devices=tuple(
            Throttle(*_device_numbers(item.path), item.weight)
            for item in host.blkio_weight_device or ()
        ),
        read_bps=_throttles(host.blkio_device_read_bps),
        write_bps=_throttles(host.blkio_device_write_bps),
        read_iops=_throttles(host.blkio_device_read_iops),
        write_iops=_throttles(host.blkio_device_write_iops),
        devices=device_rules(host),
    )


def _check_memory(host: HostConfig) -> None:
    memory, swap = host.memory, host.memory_swap
    if 0 < memory < MINIMUM_MEMORY_BYTES:
        raise InvalidArgument("Minimum memory limit allowed is 6MB")
    if memory > 0 and 0 < swap < memory:
        raise InvalidArgument(
            "Minimum memoryswap limit should be larger than memory limit, see usage"
        )
    if memory == 0 and swap > 0:
        raise InvalidArgument("You should always set the Memory limit when using Memoryswap limit")
    swappiness = host.memory_swappiness
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise InvalidArgument(f"Invalid value: {swappiness}, valid memory swappiness is 0 to 100")
    weight = host.blkio_weight
    if weight and not 10 <= weight <= 1000:
        raise InvalidArgument("Range of blkio weight is from 10 to 1000")


def rlimits(host: HostConfig) -> tuple[Rlimit, ...]:
    """Read ``Ulimits``."""
    found = []
    for item in host.ulimits or ():
        if item.name not in _RLIMITS:
            raise InvalidArgument(f"invalid ulimit type: {item.name}")
        if item.soft < -1 or item.hard < -1:
            raise InvalidArgument(
                f"invalid ulimit {item.name}={item.soft}:{item.hard}: use -1 for no limit"
            )
        if item.hard != -1 and (item.soft > item.hard or item.soft == -1):
            raise InvalidArgument(
                f"ulimit soft limit must be less than or equal to hard limit: "
                f"{item.soft} > {item.hard}"
            )
        found.append(Rlimit(_RLIMITS[item.name], item.soft, item.hard, item.name))
    return tuple(found)


def oom_score_adj(host: HostConfig) -> int:
    """Return the wanted score, checked."""
    value = host.oom_score_adj
    if not -1000 <= value <= 1000:
        raise InvalidArgument(f"Invalid value {value}, range for oom score adj is [-1000, 1000]")
    return value


_SIZE = re.compile(r"(-?\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str, option: str) -> int:
    """Read ``10m``, ``1g``, ``512`` as bytes (powers of 1024, as Docker's log options are)."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidArgument(f"invalid size {text!r} for {option}: write it as in 10m")
    power = " kmgtp".index(match[2].lower() or " ")
    return int(float(match[1]) * 1024**power)


def _throttles(devices: Sequence[ThrottleDevice] | None) -> tuple[Throttle, ...]:
    return tuple(Throttle(*_device_numbers(item.path), item.rate) for item in devices or ())


def _device_numbers(path: str) -> tuple[int, int]:
    try:
        info = os.stat(path)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise InvalidArgument(f"block device {path}: stat {path}: {reason}") from error
    if not stat.S_ISBLK(info.st_mode):
        raise InvalidArgument(f"{path} is not a block device")
    return os.major(info.st_rdev), os.minor(info.st_rdev)
