"""The memory of machines: what they use, what the host pays for it, and the dial that moves it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from desk.engine.client import EngineClient
from desk.engine.transport import UnixTransport
from desk.errors import (
    Conflict,
    DriverError,
    EngineError,
    MachineError,
    MachineNotRunning,
    UsageError,
)
from desk.machine.coming_up import Machine
from desk.machine.driver import Progress
from desk.machine.manager import Manager
from desk.machine.memory_advice import Advice, Memory, Observed, advise
from desk.machine.model import LEAST_MEMORY_MIB, State

_HEADROOM_BYTES = 48 << 20
"""Above what is held: for the kernel, and so that the next small allocation still fits."""

_MIB = 1 << 20
_MOST_NAMED = 3
_ANSWER_S = 15.0


@dataclass(frozen=True, slots=True)
class Holder:
    """A running container and the bytes that only its end gives back."""

    name: str
    held_bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment of the engine's history; ``time_s`` is a Unix time."""

    time_s: int
    total_bytes: int
    used_bytes: int
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """A running machine's memory. ``total_bytes`` is what the guest sees, less than the ceiling
    by what its kernel took at the boot. What the host pays is ``None`` where that is unknown."""

    name: str
    ceiling_mib: int
    total_bytes: int
    used_bytes: int
    cache_bytes: int
    free_bytes: int
    pressure_percent: float
    holders: Sequence[Holder]
    history: Sequence[Sample]
    observed: Sequence[Observed] | None  # None: the engine is an older one, which does not observe
    host_ram_bytes: int | None  # the guest's memory alone
    host_process_bytes: int | None  # with what the virtual machine needs for itself

    @property
    def least_mib(self) -> int:
        """The lowest ceiling under which all that is held still has its place."""
        return -(-(self._kernel_bytes + self.used_bytes + _HEADROOM_BYTES) // _MIB)

    @property
    def own_bytes(self) -> int:
        """What the kernel took at the boot, and all that is used now and by no container."""
        held = sum(holder.held_bytes for holder in self.holders)
        return self._kernel_bytes + max(0, self.used_bytes - held)

    @property
    def _kernel_bytes(self) -> int:
        return max(0, self.ceiling_mib * _MIB - self.total_bytes)


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of a wish for another ceiling."""

    live: bool  # the running machine has it already
    restarted: bool


class MemoryDial:
    """Looks at the memory of machines and moves their ceilings."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def usage(self, name: str) -> MemoryUsage:
        """Return a running machine's memory; ``MachineNotRunning`` and ``EngineError``."""
        machine = self._manager.open(name)
        state = machine.driver.state()
        if state is not State.RUNNING:
            raise MachineNotRunning(
                f"machine {name} is {state.value.lower()}",
                hint=f"`desk machine start {name}` starts it.",
            )
        return self._usage(machine)

    def advice(self, name: str) -> Advice:
        """Return which memory a running machine should have by what its containers held at most.

        Raises ``MachineNotRunning``, ``EngineError``, and ``MachineError`` where the engine is an
        older one, which does not observe that.
        """
        usage = self.usage(name)
        if usage.observed is None:
            raise MachineError(
                f"the engine of machine {name} does not observe what containers hold at most",
                hint=f"`desk machine upgrade {name}` brings one that does.",
            )
        return advise(
            Memory(usage.ceiling_mib, usage.own_bytes, usage.least_mib),
            usage.observed,
            now_s=time.time(),
            sized=self._manager.open(name).driver.features.sized,
        )

    def _usage(self, machine: Machine) -> MemoryUsage:
        socket = UnixTransport(machine.paths.engine_socket)
        with EngineClient(socket, timeout_s=_ANSWER_S) as client:
            told = client.system.memory()
        live = machine.driver.live_memory()
        return MemoryUsage(
            name=machine.name,
            ceiling_mib=_ceiling_mib(machine, told),
            total_bytes=int(told["Total"]),
            used_bytes=int(told["Used"]),
            cache_bytes=int(told["Cache"]),
            free_bytes=int(told["Free"]),
            pressure_percent=float(told["PressurePercent"]),
            holders=[Holder(str(c["Name"]), int(c["Held"])) for c in told["Containers"]],
            history=[_sample(entry) for entry in told["History"]],
            observed=_observed(told),
            host_ram_bytes=None if live is None else live.resident_bytes(),
            host_process_bytes=machine.driver.host_memory_bytes(),
        )

    def move(
        self, name: str, memory_mib: int, progress: Progress, *, settings: str | None = None
    ) -> Moved:
        """Give the machine another ceiling: at once where its driver can, else by a restart,
        which ``progress`` is told first.

        Raises ``Conflict`` where running containers hold more, ``UsageError`` where the machine's
        memory is not Desk's to give, and ``DriverError`` where the guest does not follow; then
        nothing has changed. ``settings`` is what is then the machine's ``machine.toml``, instead of
        the one that it has.
        """
        if memory_mib < LEAST_MEMORY_MIB:
            raise UsageError(
                f"{memory_mib} MiB of memory are too few for a machine",
                hint=f"Give at least {LEAST_MEMORY_MIB} MiB; 2048 suit most work.",
            )
        with self._manager.held(name, "setting") as machine:
            if not machine.driver.features.sized:
                raise UsageError(
                    f"machine {name} is a Linux of its own, whose memory Desk does not set",
                    hint="`desk update --memory` limits single containers.",
                )
            if settings is None:
                self._manager.check_settings(machine)
            state = machine.driver.state()
            if state is State.SAVED:
                raise Conflict(
                    f"machine {name} is parked, with the memory that it had",
                    hint=f"`desk machine start {name}` lets it go on; set its memory then.",
                )
            runs = state is State.RUNNING
            if runs:
                self._check_fits(machine, memory_mib)
            live = machine.driver.live_memory()
            moves = live is not None and memory_mib <= live.most_mib()
            if live is not None and moves:
                progress(f"Moving the memory of machine {name} to {memory_mib} MiB")
                live.move(memory_mib)
            spec = machine.record.spec
            moved = replace(spec, memory_mib=memory_mib)
            self._manager.respecify(machine, moved, settings=settings)
        if not runs or moves:
            return Moved(live=moves, restarted=False)
        progress(f"Restarting machine {name}, which cannot have {memory_mib} MiB without that")
        try:
            self._manager.restart(name, progress)
        except MachineError:
            progress(f"Starting machine {name} again with {spec.memory_mib} MiB as before")
            with self._manager.held(name, "setting") as machine:
                before = replace(machine.record.spec, memory_mib=spec.memory_mib)
                self._manager.respecify(machine, before)
            self._manager.start(name, progress)
            raise
        return Moved(live=False, restarted=True)

    def _check_fits(self, machine: Machine, memory_mib: int) -> None:
        if memory_mib >= machine.record.spec.memory_mib:
            return
        try:
            usage = self._usage(machine)
        except EngineError as error:
            raise DriverError(
                f"machine {machine.name} does not tell what its containers hold: {error.text}",
                hint=f"`desk machine restart {machine.name}` mends most faults.",
            ) from error
        if memory_mib >= usage.least_mib:
            return
        raise Conflict(
            f"machine {machine.name} needs {usage.least_mib} MiB for what is running:"
            f" {described(usage)}",
            hint=f"Give it {usage.least_mib} MiB or more, or stop a container first.",
        )


def described(usage: MemoryUsage) -> str:
    """Return who holds the memory, the largest first, in one phrase."""
    holders = [holder for holder in usage.holders if holder.held_bytes >= _MIB]
    parts = [f"{h.name} holds {_rounded(h.held_bytes)}" for h in holders[:_MOST_NAMED]]
    rest = holders[_MOST_NAMED:]
    if rest:
        parts.append(f"{len(rest)} more hold {_rounded(sum(h.held_bytes for h in rest))}")
    own = usage.used_bytes - sum(holder.held_bytes for holder in holders)
    parts.append(f"the machine itself uses {_rounded(max(0, own))}")
    return ", ".join(parts)


def _rounded(size_bytes: int) -> str:
    return f"{round(size_bytes / _MIB)} MiB"


def _ceiling_mib(machine: Machine, told: Mapping[str, Any]) -> int:
    if machine.driver.features.sized:
        return machine.record.spec.memory_mib
    return int(told["Total"]) // _MIB


def _sample(entry: Mapping[str, Any]) -> Sample:
    return Sample(int(entry["Time"]), int(entry["Total"]), int(entry["Used"]), int(entry["Cache"]))


def _observed(told: Mapping[str, Any]) -> list[Observed] | None:
    if "Ended" not in told:
        return None
    return [
        Observed(
            name=str(entry["Name"]),
            image=str(entry["Image"]),
            held_bytes=int(entry.get("Held", 0)),
            peak_bytes=int(entry["Peak"]),
            peak_usage_bytes=int(entry["PeakUsage"]),
            limit_bytes=int(entry["Limit"]),
            observed_s=float(entry["ObservedSeconds"]),
            runs=int(entry["Runs"]),
            started_s=int(entry["StartedNano"]) / 1e9,
            finished_s=int(entry["FinishedNano"]) / 1e9 if entry["FinishedNano"] else None,
        )
        for entry in [*told["Containers"], *told["Ended"]]
    ]
