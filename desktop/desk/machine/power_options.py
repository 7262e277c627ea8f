"""What a machine does while this computer is on its battery: ``battery_cpus``, ``power_source``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from desk.agent.spec import AUTO, PowerWishes
from desk.errors import UsageError
from desk.machine.model import MachineSpec

POWER_OPTIONS = frozenset({"battery_cpus", "power_source"})
"""Driver options of every machine that runs on this computer."""

SOURCES = (AUTO, "mains", "battery")
LEAST_CPUS = 0.01
_NANO = 1_000_000_000


def check_power(options: Mapping[str, str]) -> None:
    """Raise ``UsageError`` for a number of CPUs or a source that there cannot be."""
    cpus, source = options.get("battery_cpus", ""), options.get("power_source", "")
    if cpus and not _is_count(cpus):
        raise UsageError(
            f"battery-cpus cannot be {cpus!r}",
            hint=f"Give a number of CPUs, such as 1 or 1.5, at least {LEAST_CPUS}; without a"
            " setting there is no limit.",
        )
    if source and source not in SOURCES:
        raise UsageError(
            f"power-source cannot be {source!r}",
            hint=f"It is {', '.join(SOURCES[:-1])} or {SOURCES[-1]}; {AUTO} is what this computer"
            " tells.",
        )


def power_wishes(spec: MachineSpec) -> PowerWishes:
    """Return what the agent of a machine is to follow."""
    return PowerWishes(
        source=spec.options.get("power_source") or AUTO,
        nano_cpus=round(float(spec.options.get("battery_cpus") or 0) * _NANO),
    )


def _is_count(text: str) -> bool:
    try:
        count = float(text)
    except ValueError:
        return False
    return math.isfinite(count) and count >= LEAST_CPUS
