"""A machine in hand, and the waiting until it has come up: what is waited for, and for how long."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from desk.machine import console
from desk.machine.driver import Driver, Progress
from desk.machine.model import State
from desk.machine.readiness import Requirement, wait_ready
from desk.machine.store import MachineRecord
from desk.paths import MachinePaths

_SILENT_BOOT_S = 30.0
_POWER_LOSS_S = 2.0


@dataclass(frozen=True, slots=True)
class Returned:
    """A container that ran before its machine was restarted: its states before and after, and why
    it did not come back."""

    name: str
    before: str
    after: str
    error: str = ""

    @property
    def is_back(self) -> bool:
        return not self.error and self.after == self.before


@dataclass(frozen=True, slots=True)
class Report:
    """How long the stages of a start, stop or restart took, in seconds and in their order.

    ``boot`` holds the guest's own stages, counted from the moment its kernel began; ``containers``
    what a restart gave back, in the order of their starts.
    """

    stages: tuple[tuple[str, float], ...] = ()
    boot: tuple[tuple[str, float], ...] = ()
    containers: tuple[Returned, ...] = ()

    @property
    def total_s(self) -> float:
        return sum(seconds for _name, seconds in self.stages)


class Stopwatch:
    def __init__(self) -> None:
        self.stages: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.stages.append((name, time.monotonic() - started))


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine in hand: its record, its driver and its files."""

    record: MachineRecord
    driver: Driver
    paths: MachinePaths

    @property
    def name(self) -> str:
        return self.paths.directory.name


class Patience:
    """Waits for requirements, all within the one deadline of a start."""

    def __init__(
        self,
        machine: Machine,
        deadline_s: float,
        cancelled: threading.Event | None,
        progress: Progress,
        watch: Stopwatch,
    ) -> None:
        self._machine = machine
        self._deadline = time.monotonic() + deadline_s
        self._cancelled = cancelled
        self._progress = progress
        self._watch = watch

    def wait(self, requirements: Sequence[Requirement]) -> None:
        ready = wait_ready(
            self._machine.name,
            requirements,
            deadline_s=max(0.0, self._deadline - time.monotonic()),
            cancelled=self._cancelled,
            diagnose=self._machine.driver.diagnose,
            progress=self._progress,
        )
        before_s = 0.0
        for requirement, (description, met_s) in zip(requirements, ready.met_s, strict=True):
            if not requirement.fatal:  # those are there all the time
                self._watch.stages.append((description, met_s - before_s))
            before_s = met_s


def power(machine: Machine) -> Requirement:
    lost_at: float | None = None
    asks_at = time.monotonic()
    interval_s = machine.driver.features.state_interval_s

    def powered(_left_s: float) -> str:
        nonlocal lost_at, asks_at
        if time.monotonic() < asks_at:
            return ""
        state = machine.driver.state()
        asks_at = time.monotonic() + interval_s
        if state is not State.RUNNING:
            # Drivers that ask the network can miss an answer, or two, on a busy computer.
            lost_at = lost_at or time.monotonic()
            gone = time.monotonic() - lost_at >= max(_POWER_LOSS_S, 3 * interval_s)
            return f"it is {state.value.lower()} again" if gone else ""
        lost_at = None
        if machine.driver.features.has_console:
            found = console.finding(machine.paths.console_log)
            if found is not None and found.fatal:
                return "its guest failed to boot"
        return ""

    return Requirement(
        "the machine's power",
        powered,
        f"`desk machine start {machine.name}` tries again, `desk doctor` checks this computer.",
        fatal=True,
    )


def boot(machine: Machine) -> Requirement:
    """The guest's sshd, by its stage on the console.

    A connection that comes before sshd listens hangs in QEMU's user network for seconds, so the
    agent is started when its first attempt can succeed; where the console tells nothing it is
    started all the same.
    """
    listens = stage(machine, {"sshd", "engine"})
    return Requirement(
        "the guest's boot",
        lambda _left_s: "" if listens() else "its guest has not booted",
        "`desk doctor --probe` tries the accelerators again.",
    )


def stage(machine: Machine, wanted: Collection[str]) -> Callable[[], bool]:
    """Return a question: has the guest reported one of these stages, or been silent for long?"""
    tries_at = time.monotonic() + _SILENT_BOOT_S

    def reached() -> bool:
        seen = {name for name, _seconds in console.stages(machine.paths.console_log)}
        return bool(seen & set(wanted)) or time.monotonic() >= tries_at

    return reached
