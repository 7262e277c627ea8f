"""How processes end and are found again: small structures shared by services and runtime."""

from __future__ import annotations

from deskd.record import Record


class Exit(Record):
    """How a process ended. ``code`` is 128 + signal for a killed one, as Docker reports it.

    ``memory_peak_bytes`` is the most that the kernel charged the container with in this run, page
    cache included, and ``memory_cache_bytes`` the cache that was left at its end; 0 is not known.
    """

    code: int
    finished_at_ns: int
    oom_killed: bool = False
    error: str = ""
    own_memory_limit: bool = False  # the killing came from the group's own limit
    memory_peak_bytes: int = 0
    memory_cache_bytes: int = 0


class FoundMonitor(Record):
    """A monitor met at reconciliation: still running, or gone with its exit on record.

    ``pid`` is the PID of the container's first process as the engine sees it."""

    key: str
    pid: int
    started_at_ns: int
    exit: Exit | None
