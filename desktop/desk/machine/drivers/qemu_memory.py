"""The memory of a running QEMU machine: moved by virtio-mem and the balloon, measured in smaps.

The machine boots with its ceiling as ordinary memory. Above that virtio-mem plugs more in, which
the guest uses for programs only (movable) and so can always give up again; below it the balloon
takes memory away. Both are asked for by QMP, and the guest follows within seconds.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from desk.errors import DriverError
from desk.machine.process import Process
from desk.machine.qemu_command import PLUG_ID
from desk.machine.store import Facts

FACT_BOOT, FACT_PLUG = "boot_memory_mib", "plug_memory_mib"
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_NEVER = "2"  # of vm.overcommit_memory, proc(5)
_MIB = 1 << 20
_POLL_S = 0.05
_FOLLOW_S = 30.0
_PLUG_UNIT_MIB = 4  # Linux plugs pieces of this size on x86-64
_BALLOON_SLACK_BYTES = _MIB
_EMPTY_BALLOON_BYTES = 1 << 50  # QEMU takes the most that there is


def host_memory_mib(overcommit: Path = _OVERCOMMIT) -> int:
    """Return the memory of this computer; 0 where it is not asked for, or where this Linux never
    promises more memory than it has: nothing can be set aside to be plugged in there."""
    if sys.platform == "win32":
        return 0
    with contextlib.suppress(OSError):
        if overcommit.read_text("ascii").strip() == _NEVER:
            return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB


class Qmp(Protocol):
    def __call__(self, command: str, **arguments: object) -> Any: ...


class QemuMemory:
    """Implements ``LiveMemory``. ``facts`` tell what the machine was started with."""

    def __init__(self, name: str, process: Process, facts: Facts, qmp: Qmp) -> None:
        self._name = name
        self._process = process
        self._qmp = qmp
        self._boot_mib = int(facts.get(FACT_BOOT) or 0)
        self._plug_mib = int(facts.get(FACT_PLUG) or 0)

    def most_mib(self) -> int:
        return self._boot_mib + self._plug_mib

    def move(self, memory_mib: int) -> None:
        before = (self._plugged(), self._balloon())
        over_mib = max(0, memory_mib - self._boot_mib)
        plug = -(-over_mib // _PLUG_UNIT_MIB) * _PLUG_UNIT_MIB * _MIB
        balloon = memory_mib * _MIB if memory_mib < self._boot_mib else _EMPTY_BALLOON_BYTES
        try:
            self._ask(plug, balloon)
            self._wait(plug, balloon)
        except DriverError:
            self._ask(*before)
            raise

    def _ask(self, plug: int, balloon: int) -> None:
        if self._plug_mib:
            path = f"/machine/peripheral/{PLUG_ID}"
            self._qmp("qom-set", path=path, property="requested-size", value=plug)
        self._qmp("balloon", value=balloon)

    def _wait(self, plug: int, balloon: int) -> None:
        deadline = time.monotonic() + _FOLLOW_S
        while True:
            plugged, left = self._plugged(), self._balloon()
            wants_less = balloon != _EMPTY_BALLOON_BYTES
            if plugged == plug and (not wants_less or left <= balloon + _BALLOON_SLACK_BYTES):
                return
            if time.monotonic() >= deadline:
                raise DriverError(
                    f"the guest of machine {self._name} did not follow within {_FOLLOW_S:g} s: it"
                    f" has {(min(left, self._boot_mib * _MIB) + plugged) // _MIB} MiB",
                    hint="Its memory is as it was. Something in it may hold more than its"
                    " containers show: see `desk machine stats`.",
                )
            time.sleep(_POLL_S)

    def _plugged(self) -> int:
        if not self._plug_mib:
            return 0
        path = f"/machine/peripheral/{PLUG_ID}"
        return int(self._qmp("qom-get", path=path, property="size"))

    def _balloon(self) -> int:
        """Return how much of the memory it booted with the guest has outside of the balloon."""
        return int(self._qmp("query-balloon")["actual"])

    def resident_bytes(self) -> int | None:
        sizes = {size * _MIB for size in (self._boot_mib, self._plug_mib) if size}
        return self._process.resident_in_mappings(sizes)
