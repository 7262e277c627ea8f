"""How processes end and are found again: small structures shared by services and runtime."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. ``code`` is 128 + signal for a killed one, as Docker reports it."""

    code: int
    finished_at_ns: int
    oom_killed: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class FoundMonitor:
    """A monitor met at reconciliation: still running, or gone with its exit on record.

    ``pid`` is the PID of the container's first process as the engine sees it."""

    key: str
    pid: int
    started_at_ns: int
    exit: Exit | None
