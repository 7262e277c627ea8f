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
    live_memory: bool
    own_guest: bool = False  # Desk's guest image, whose clock the agent keeps
    has_seed: bool = False  # what its engine is to do is told anew at each start
    # Each question for the state is a connection to the machine's sshd, which starts a process for
    # it: while something else is waited for, the state is asked no more often than this.
    state_interval_s: float = 0.0


class Driver(Protocol):
    """How one machine is had.

    Calls are blocking. ``create`` comes first and once; it leaves a stopped machine, or nothing
    if it raises. ``start`` and ``stop`` are idempotent; ``start`` returns when the machine's
    power is on (``readiness`` then waits for SSH and the engine). ``remove`` works from any state
    and is idempotent. ``state`` answers within milliseconds and starts no process.
    """

    features: Features

    def create(self, spec: MachineSpec, progress: Progress) -> None: ...
    def start(self, progress: Progress) -> None: ...
    def stop(self, *, grace_s: float) -> None:
        """Ask for an orderly end; after ``grace_s`` seconds end it the hard way."""

    def kill(self) -> None: ...
    def remove(self) -> None: ...
    def state(self) -> State: ...
    def endpoint(self) -> Endpoint | None:
        """Where sshd listens; ``None`` where ``features.has_ssh`` is false."""

    def engine_access(self) -> EngineAccess:
        """How the agent gets from the machine's sshd to its engine (unused without SSH)."""

    def host_memory_bytes(self) -> int | None:
        """What the host pays for the machine's memory now; ``None`` where that is unknown."""

    def diagnose(self) -> str:
        """One sentence about why the machine does not come up, from its console or log."""
