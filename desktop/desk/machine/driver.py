"""The small interface behind which every kind of machine stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from desk.agent.spec import EngineAccess
from desk.machine.model import MachineSpec, State
from desk.ssh.endpoint import Endpoint

Progress = Callable[[str], None]
"""Called with one short sentence in the present tense for each step that takes time."""


@dataclass(frozen=True, slots=True)
class Features:
    """How drivers differ, as data; callers ask these and never a driver's name."""

    needs_guest_image: bool
    has_ssh: bool  # False: the engine's socket is on this Linux, and no agent is needed
    can_power: bool  # start and stop mean something to it
    has_console: bool
    live_memory: bool  # the ceiling can be moved while the machine runs
    sized: bool = True  # memory and CPUs of its specification mean something to it
    own_guest: bool = False  # Desk's guest image, whose clock the agent keeps
    # Containers reach this computer's loopback through the agent, not by the machine's own network.
    led_back_by_agent: bool = False
    # Its processors are this computer's, and an agent tells it what this computer runs on.
    shares_power: bool = False
    # All of the machine is files in its directory: it can be renamed, copied and frozen.
    portable: bool = False
    parks: bool = False  # its state can lie on disk, while nothing of it is in memory
    folder_devices: bool = False  # this computer's folders can be devices of it
    has_seed: bool = False  # what its engine is to do is told anew at each start
    options: frozenset[str] = frozenset()  # names that its specification's options can have
    needed_options: frozenset[str] = frozenset()  # without which there is no such machine
    # Each question for the state is a connection to the machine's sshd, which starts a process for
    # it: while something else is waited for, the state is asked no more often than this.
    state_interval_s: float = 0.0


class LiveMemory(Protocol):
    """The memory of a machine that runs."""

    def most_mib(self) -> int:
        """How far the ceiling can be raised without a restart."""

    def move(self, memory_mib: int) -> None:
        """Set the ceiling and return when the guest has followed. Raises ``DriverError`` where it
        does not; then the ceiling is as it was."""

    def resident_bytes(self) -> int | None:
        """What the host pays for the guest's memory alone; ``None`` where that is unknown."""


class DataDisk(Protocol):
    """The data disk of a machine, running or not."""

    def grow(self, size_bytes: int) -> None:
        """Give the disk at least this size; its file system is another matter. Raises
        ``MachineError`` where there is no room; then it is as it was."""


class Driver(Protocol):
    """How one machine is had.

    Calls are blocking. ``create`` comes first and once; it leaves a stopped machine, or nothing
    if it raises. ``start`` and ``stop`` are idempotent; ``start`` returns when the machine's
    power is on (``readiness`` then waits for SSH and the engine). ``remove`` works from any state
    and is idempotent. ``state`` answers within milliseconds and starts no process.
    """

    features: Features

    def create(self, spec: MachineSpec, progress: Progress) -> None: ...
    def provision(self, progress: Progress) -> None:
        """Make anew what ``create`` made and what is not data: keys, their files, what is
        installed. A machine that runs has it from its next start."""

    def start(self, progress: Progress) -> None: ...
    def stop(self, *, grace_s: float) -> None:
        """Ask for an orderly end; after ``grace_s`` seconds end it the hard way."""

    def kill(self) -> None: ...
    def freeze(self) -> None:
        """Let the machine stand still, so that its files can be copied; only called where
        ``features.portable``. Its state is ``Paused`` until ``thaw`` or ``start``."""

    def thaw(self) -> None:
        """End a ``freeze``; nothing where there is none."""

    def park(self) -> None:
        """Write the running machine's state to disk and end it; only called where
        ``features.parks``. Its state is ``Saved`` until ``start`` lets it go on or ``kill`` gives
        it up; ``stop`` leaves it. Raises ``DriverError``; then the machine runs on."""

    def check_sharing(self, spec: MachineSpec) -> None:
        """Raise ``DriverError`` where the machine cannot have this computer's folders as devices in
        the way that ``spec`` says; nothing where ``features.folder_devices`` is false."""

    def remove(self) -> None: ...
    def state(self) -> State: ...
    def endpoint(self) -> Endpoint | None:
        """Where sshd listens; ``None`` where ``features.has_ssh`` is false."""

    def engine_access(self) -> EngineAccess:
        """How the agent gets from the machine's sshd to its engine (unused without SSH)."""

    def host_memory_bytes(self) -> int | None:
        """What the host pays for the machine's memory now; ``None`` where that is unknown."""

    def live_memory(self) -> LiveMemory | None:
        """The memory of the running machine; ``None`` where the machine is off, or where
        ``features.live_memory`` is false."""

    def data_disk(self) -> DataDisk | None:
        """The disk for images, containers and volumes; ``None`` where it is none of Desk's."""

    def diagnose(self) -> str:
        """One sentence about why the machine does not come up, from its console or log."""
