"""What a machine is: its specification, its states and what may follow what."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

from desk.errors import Conflict, UsageError

LEAST_MEMORY_MIB = 128

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z", re.IGNORECASE)


class State(enum.Enum):
    """docker-machine's states; the value is what ``desk machine ls`` prints."""

    RUNNING = "Running"
    PAUSED = "Paused"
    SAVED = "Saved"
    STOPPED = "Stopped"
    STOPPING = "Stopping"
    STARTING = "Starting"
    ERROR = "Error"
    TIMEOUT = "Timeout"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.STOPPED: frozenset({State.STARTING}),
    State.SAVED: frozenset({State.STARTING, State.STOPPED}),
    State.STARTING: frozenset({State.RUNNING, State.ERROR, State.STOPPED}),
    State.RUNNING: frozenset({State.STOPPING, State.PAUSED, State.ERROR, State.STOPPED}),
    State.PAUSED: frozenset({State.RUNNING, State.STOPPING, State.SAVED, State.STOPPED}),
    State.STOPPING: frozenset({State.STOPPED, State.SAVED, State.ERROR}),
    State.ERROR: frozenset({State.STARTING, State.STOPPING, State.STOPPED}),
    State.TIMEOUT: frozenset(State),
}


def check_transition(name: str, before: State, after: State) -> None:
    """Raise ``Conflict`` where machine ``name`` may not go from ``before`` to ``after``."""
    if after not in TRANSITIONS[before]:
        raise Conflict(
            f"machine {name} is {before.value} and cannot become {after.value}",
            hint=f"See `desk machine status {name}`.",
        )


def check_name(name: str) -> str:
    """Return ``name`` if it may name a machine, else raise ``UsageError``."""
    if not _NAME.match(name):
        raise UsageError(
            f"{name!r} cannot name a machine",
            hint="Use letters, digits, '.', '_' and '-', starting with a letter or digit.",
        )
    return name


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What a machine was asked to be. ``options`` belong to the driver (``ssh_host``, …)."""

    name: str
    driver: str = "qemu"
    memory_mib: int = 2048
    cpus: int = 2
    disk_gib: int = 60
    image: str = ""  # path or URL#sha256=… of a guest image; empty: the installed one
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """One machine as a list or a window shows it. ``url`` is the engine's DOCKER_HOST."""

    name: str
    driver: str
    state: State
    url: str = ""
    active: bool = False
    engine_version: str = ""
    error: str = ""
    host_memory_bytes: int | None = None  # what the host pays for it now, where known
    memory_mib: int = 0
    cpus: int = 0
    labels: tuple[str, ...] = ()  # of its engine, NAME=VALUE
    response_s: float = 0.0  # how long it took to answer
