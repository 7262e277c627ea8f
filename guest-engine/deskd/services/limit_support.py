"""Which limits this machine can set, as the engine's information tells it. Pure.

The texts of the warnings are those that Docker's users know.
"""

from __future__ import annotations

from deskd.kernel.cgroup.features import Features


def limit_flags(features: Features) -> dict[str, bool]:
    """Return the part of ``SystemInfo`` about limits."""
    there = features.controllers
    return {
        "MemoryLimit": "memory" in there,
        "SwapLimit": "memory" in there and features.swap_limit,
        "CpuCfsPeriod": "cpu" in there,
        "CpuCfsQuota": "cpu" in there,
        "CPUShares": "cpu" in there,
        "CPUSet": "cpuset" in there,
        "PidsLimit": "pids" in there,
        "OomKillDisable": features.version == 1 and "memory" in there,
    }


def limit_warnings(features: Features) -> list[str]:
    """Return a sentence for each limit that containers cannot have here."""
    flags = limit_flags(features)
    lacking = [
        text
        for name, text in (
            ("MemoryLimit", "No memory limit support"),
            ("SwapLimit", "No swap limit support"),
            ("CpuCfsQuota", "No cpu cfs quota support"),
            ("CpuCfsPeriod", "No cpu cfs period support"),
            ("CPUShares", "No cpu shares support"),
            ("CPUSet", "No cpuset support"),
            ("PidsLimit", "No pids limit support"),
        )
        if not flags[name]
    ]
    if not features.io_weight:
        lacking += (
            ["No io.weight support", "No io.weight (per device) support"]
            if features.version == 2
            else ["No blkio weight support", "No blkio weight_device support"]
        )
    if not features.io_rates:
        lacking += [
            f"No io.max ({key}) support"
            if features.version == 2
            else f"No blkio throttle.{name} support"
            for key, name in (
                ("rbps", "read_bps_device"),
                ("wbps", "write_bps_device"),
                ("riops", "read_iops_device"),
                ("wiops", "write_iops_device"),
            )
        ]
    return [f"WARNING: {text}" for text in lacking]
