"""Checks of what a container may use: contradictions, impossible values, what this machine lacks.

The texts are those that Docker's users know.
"""

from __future__ import annotations

import re

import msgspec

from deskd.domain.container import HostConfig, ThrottleDevice, docker_name
from deskd.errors import InvalidArgument
from deskd.kernel.cgroup.features import Features

MIN_MEMORY_BYTES = 6 * 1024 * 1024
CPU_SHARES = range(2, 262144 + 1)
_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_LAST_NUMBER = 8191  # more CPUs than any kernel counts; keeps 0-999999999 from becoming a set


def check_ranges(host_config: HostConfig) -> None:
    """Raise ``InvalidArgument`` for a number that no kernel interface can take."""
    for name in host_config.__struct_fields__:
        value = getattr(host_config, name)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidArgument(f"invalid JSON: {docker_name(name)} {value} does not fit 64 bits")


def check_resources(host_config: HostConfig, features: Features, *, update: bool = False) -> None:
    """Raise ``InvalidArgument`` for limits that contradict each other or make no sense. With
    ``update`` they are the changes of a container, which has others."""
    _check_memory(host_config, update=update)
    _check_cpu(host_config, len(features.cpus))
    _check_realtime(host_config, features)
    _check_block_devices(host_config, features)
    for text, what, things, available in (
        (host_config.cpuset_cpus, "cpus", "CPUs", features.cpus),
        (host_config.cpuset_mems, "mems", "memory nodes", features.memory_nodes),
    ):
        wanted = _parse_list(text, what)
        if not wanted <= available:
            raise InvalidArgument(
                f"Requested {things} are not available - requested {text}, "
                f"available: {_ranges(available)}"
            )
    for value, what in (
        (host_config.io_maximum_iops, "IOPs"),
        (host_config.io_maximum_bandwidth, "bandwidth"),
    ):
        if value:
            raise InvalidArgument(
                f"Invalid QoS settings: linux does not support configuration of maximum {what}"
            )


def _check_memory(host_config: HostConfig, *, update: bool) -> None:
    memory, swap = host_config.memory, host_config.memory_swap
    if memory < 0 or 0 < memory < MIN_MEMORY_BYTES:
        raise InvalidArgument("Minimum memory limit allowed is 6MB")
    if memory > 0 and 0 < swap < memory:
        raise InvalidArgument(
            "Minimum memoryswap limit should be larger than memory limit, see usage"
        )
    if memory == 0 and swap > 0 and not update:
        raise InvalidArgument(
            "You should always set the Memory limit when using Memoryswap limit, see usage"
        )
    if swap < -1:
        raise InvalidArgument(f"invalid memory-swap {swap}: use -1 for no limit")
    swappiness = host_config.memory_swappiness
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise InvalidArgument(
            f"Invalid value: {swappiness}, valid memory swappiness range is 0-100"
        )
    reservation = host_config.memory_reservation
    if reservation < 0 or 0 < reservation < MIN_MEMORY_BYTES:
        raise InvalidArgument("Minimum memory reservation allowed is 6MB")
    if 0 < memory < reservation:
        raise InvalidArgument(
            "Minimum memory limit can not be less than memory reservation limit, see usage"
        )


def _check_cpu(host_config: HostConfig, cpus: int) -> None:
    if host_config.nano_cpus:
        for value, what in ((host_config.cpu_period, "Period"), (host_config.cpu_quota, "Quota")):
            if value:
                raise InvalidArgument(
                    f"Conflicting options: Nano CPUs and CPU {what} cannot both be set"
                )
        if not 0 < host_config.nano_cpus <= cpus * 1_000_000_000:
            raise InvalidArgument(
                f"Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
            )
    shares = host_config.cpu_shares
    if shares and shares not in CPU_SHARES:
        raise InvalidArgument(
            f"invalid CPU shares ({shares}): the minimum allowed cpu-shares is {CPU_SHARES[0]}, "
            f"the maximum {CPU_SHARES[-1]}"
        )
    if host_config.cpu_period and not 1000 <= host_config.cpu_period <= 1_000_000:
        raise InvalidArgument(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if host_config.cpu_quota and host_config.cpu_quota < 1000 and host_config.cpu_quota != -1:
        raise InvalidArgument("CPU cfs quota can not be less than 1ms (i.e. 1000)")


def _check_realtime(host_config: HostConfig, features: Features) -> None:
    period, runtime = host_config.cpu_realtime_period, host_config.cpu_realtime_runtime
    if not period and not runtime:
        return
    if not features.realtime:
        raise InvalidArgument(
            "your kernel does not support CPU real-time scheduling for containers: it needs "
            "cgroup version 1 and CONFIG_RT_GROUP_SCHED; leave --cpu-rt-period and "
            "--cpu-rt-runtime out"
        )
    if period < 0 or runtime < 0:
        raise InvalidArgument("cpu real-time period and runtime must be positive")
    if period and runtime > period:
        raise InvalidArgument("cpu real-time runtime cannot be higher than cpu real-time period")


def _check_block_devices(host_config: HostConfig, features: Features) -> None:
    weights = [item.weight for item in host_config.blkio_weight_device or ()]
    for weight in (host_config.blkio_weight, *weights):
        if features.io_weight and weight and not 10 <= weight <= 1000:  # else it is discarded
            raise InvalidArgument("Range of blkio weight is from 10 to 1000")
    throttles: list[ThrottleDevice] = []
    for items in (
        host_config.blkio_device_read_bps,
        host_config.blkio_device_write_bps,
        host_config.blkio_device_read_iops,
        host_config.blkio_device_write_iops,
    ):
        throttles += items or ()
    for throttle in throttles:
        if not 0 <= throttle.rate < 2**63:
            raise InvalidArgument(f"invalid rate for device {throttle.path}: {throttle.rate}")


def _parse_list(text: str, what: str) -> frozenset[int]:
    """Read ``0-2,4``. Raises ``InvalidArgument``."""
    if not text:
        return frozenset()
    found: set[int] = set()
    if not text.isascii() or not _LIST.fullmatch(text):
        raise _no_list(text, what)
    for part in text.split(","):
        first, _, last = part.partition("-")
        start, end = int(first[:9]), int((last or first)[:9])
        if start > end or end > _LAST_NUMBER:
            raise _no_list(text, what)
        found.update(range(start, end + 1))
    return frozenset(found)


def _no_list(text: str, what: str) -> InvalidArgument:
    shown = text[:200]
    return InvalidArgument(f"Invalid value {shown} for cpuset {what}: invalid format: {shown}")


def _ranges(numbers: frozenset[int]) -> str:
    """Write numbers as the kernel does: ``0-2,4``."""
    parts: list[str] = []
    ordered = sorted(numbers)
    for index, number in enumerate(ordered):
        if index and number == ordered[index - 1] + 1:
            start = parts[-1].partition("-")[0]
            parts[-1] = f"{start}-{number}"
        else:
            parts.append(str(number))
    return ",".join(parts)


def discard_unsupported(
    host_config: HostConfig, features: Features
) -> tuple[HostConfig, list[str]]:
    """Take away limits that this kernel cannot set; return what stays, and a warning for each."""
    warnings: list[str] = []
    changes: dict[str, object] = {}
    if host_config.memory > 0 and not features.swap_limit:
        if host_config.memory_swap != -1:
            warnings.append(
                "Your kernel does not support swap limit capabilities or the cgroup is not "
                "mounted. Memory limited without swap."
            )
        changes["memory_swap"] = -1
    if not features.io_weight:
        for name, none, what, short in (
            ("blkio_weight", 0, "weight", "Weight"),
            ("blkio_weight_device", [], "weight_device", "Weight-device"),
        ):
            if getattr(host_config, name):
                warnings.append(
                    f"Your kernel does not support Block I/O {what} or the cgroup is not mounted. "
                    f"{short} discarded."
                )
                changes[name] = none
    return msgspec.structs.replace(host_config, **changes), warnings


def settle_resources(host_config: HostConfig, features: Features) -> tuple[HostConfig, list[str]]:
    """Return the limits as they will be, and warnings of what was taken away and why."""
    host_config, warnings = discard_unsupported(host_config, features)
    changes: dict[str, object] = {}
    if host_config.pids_limit is not None and host_config.pids_limit <= 0:
        changes["pids_limit"] = None  # both mean "no limit", and so does none
    if host_config.cpu_percent:
        warnings.append("linux does not support CPU percent. Percent discarded.")
        changes["cpu_percent"] = 0
    memory = host_config.memory
    if memory > 0 and host_config.memory_swap == 0:
        changes["memory_swap"] = memory * 2
    if host_config.memory_swappiness == -1:
        changes["memory_swappiness"] = None
    if features.version == 2:
        warnings += _discard_of_version_1(host_config, changes)
    elif not host_config.oom_kill_disable:
        changes["oom_kill_disable"] = False
    elif not memory:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can "
            "result in the system running out of resources."
        )
    return msgspec.structs.replace(host_config, **changes), warnings


def _discard_of_version_1(host_config: HostConfig, changes: dict[str, object]) -> list[str]:
    """Take away what only control groups of version 1 have."""
    warnings = []
    if host_config.oom_kill_disable:
        warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
    changes["oom_kill_disable"] = None
    if host_config.memory_swappiness not in (None, -1):
        warnings.append(
            "Your kernel does not support memory swappiness capabilities or the cgroup is not "
            "mounted. Memory swappiness discarded."
        )
        changes["memory_swappiness"] = None
    return warnings
