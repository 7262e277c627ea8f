"""What a container uses, in the Engine API's shape (``ContainerStats`` of API v1.47)."""

from __future__ import annotations

import os
from typing import Any

from deskd.kernel.cgroup import files
from deskd.kernel.cgroup.v1 import CgroupV1
from deskd.kernel.cgroup.v2 import CgroupV2

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_MAX_UINT64 = 2**64 - 1


def read_stats(cgroup: CgroupV1 | CgroupV2) -> dict[str, Any]:
    """Return ``cpu_stats``, ``memory_stats``, ``blkio_stats`` and ``pids_stats``."""
    return _v1(cgroup) if isinstance(cgroup, CgroupV1) else _v2(cgroup)


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _system_cpu_ns() -> int:
    with open("/proc/stat") as file:
        fields = file.readline().split()[1:9]
    return sum(int(value) for value in fields) * _TICK_NS


def _cpu(total: int, user: int, kernel: int, throttling: tuple[int, int, int]) -> dict[str, Any]:
    periods, throttled, throttled_ns = throttling
    return {
        "cpu_usage": {
            "total_usage": total,
            "usage_in_kernelmode": kernel,
            "usage_in_usermode": user,
        },
        "system_cpu_usage": _system_cpu_ns(),
        "online_cpus": len(os.sched_getaffinity(0)),
        "throttling_data": {
            "periods": periods,
            "throttled_periods": throttled,
            "throttled_time": throttled_ns,
        },
    }


def _v2(cgroup: CgroupV2) -> dict[str, Any]:
    path = cgroup.path
    cpu = files.read_pairs(f"{path}/cpu.stat")
    throttling = (
        cpu.get("nr_periods", 0),
        cpu.get("nr_throttled", 0),
        cpu.get("throttled_usec", 0) * 1000,
    )
    memory: dict[str, Any] = {}
    if os.path.exists(f"{path}/memory.current"):
        host = _host_memory_bytes()
        memory = {
            "usage": files.read_number(f"{path}/memory.current"),
            "failcnt": files.read_pairs(f"{path}/memory.events").get("oom", 0),
            "stats": files.read_pairs(f"{path}/memory.stat"),
            "limit": min(files.read_number(f"{path}/memory.max", host), host),
        }
    return {
        "cpu_stats": _cpu(
            cpu.get("usage_usec", 0) * 1000,
            cpu.get("user_usec", 0) * 1000,
            cpu.get("system_usec", 0) * 1000,
            throttling,
        ),
        "memory_stats": memory,
        "blkio_stats": _blkio(_io_stat(path)),
        "pids_stats": _pids(path),
    }


def _io_stat(path: str) -> dict[str, list[dict[str, Any]]]:
    names = {
        "rbytes": ("io_service_bytes_recursive", "read"),
        "wbytes": ("io_service_bytes_recursive", "write"),
        "rios": ("io_serviced_recursive", "read"),
        "wios": ("io_serviced_recursive", "write"),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for line in files.read(f"{path}/io.stat").splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key in names:
                table, operation = names[key]
                found.setdefault(table, []).append(_entry(major, minor, operation, value))
    return found


def _entry(major: str, minor: str, operation: str, value: str) -> dict[str, Any]:
    return {"major": int(major), "minor": int(minor), "op": operation, "value": int(value)}


def _blkio(tables: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    names = (
        "io_service_bytes_recursive",
        "io_serviced_recursive",
        "io_queue_recursive",
        "io_service_time_recursive",
        "io_wait_time_recursive",
        "io_merged_recursive",
        "io_time_recursive",
        "sectors_recursive",
    )
    return {name: tables.get(name) for name in names}


def _pids(path: str) -> dict[str, Any]:
    if not os.path.exists(f"{path}/pids.current"):
        return {}
    return {
        "current": files.read_number(f"{path}/pids.current"),
        "limit": files.read_number(f"{path}/pids.max", _MAX_UINT64),
    }


def _v1(cgroup: CgroupV1) -> dict[str, Any]:
    cpu, cpuacct = cgroup.directory("cpu"), cgroup.directory("cpuacct")
    throttling = files.read_pairs(f"{cpu}/cpu.stat")
    ticks = files.read_pairs(f"{cpuacct}/cpuacct.stat")
    memory = cgroup.directory("memory")
    blkio = cgroup.directory("blkio")
    cpu_stats = _cpu(
        files.read_number(f"{cpuacct}/cpuacct.usage"),
        ticks.get("user", 0) * _TICK_NS,
        ticks.get("system", 0) * _TICK_NS,
        (
            throttling.get("nr_periods", 0),
            throttling.get("nr_throttled", 0),
            throttling.get("throttled_time", 0),
        ),
    )
    per_cpu = files.read(f"{cpuacct}/cpuacct.usage_percpu").split()
    cpu_stats["cpu_usage"]["percpu_usage"] = [int(value) for value in per_cpu]
    host = _host_memory_bytes()
    return {
        "cpu_stats": cpu_stats,
        "memory_stats": {
            "usage": files.read_number(f"{memory}/memory.usage_in_bytes"),
            "max_usage": files.read_number(f"{memory}/memory.max_usage_in_bytes"),
            "failcnt": files.read_number(f"{memory}/memory.failcnt"),
            "stats": files.read_pairs(f"{memory}/memory.stat"),
            "limit": min(files.read_number(f"{memory}/memory.limit_in_bytes", host), host),
        },
        "blkio_stats": _blkio(
            {
                "io_service_bytes_recursive": _throttle(blkio, "io_service_bytes"),
                "io_serviced_recursive": _throttle(blkio, "io_serviced"),
            }
        ),
        "pids_stats": _pids(cgroup.directory("pids")),
    }


def _throttle(directory: str, name: str) -> list[dict[str, Any]]:
    text = files.read(f"{directory}/blkio.throttle.{name}_recursive") or files.read(
        f"{directory}/blkio.throttle.{name}"
    )
    entries = []
    for line in text.splitlines():
        parts = line.split()
        if len(parts) == 3 and ":" in parts[0]:
            major, _, minor = parts[0].partition(":")
            entries.append(_entry(major, minor, parts[1].lower(), parts[2]))
    return entries
