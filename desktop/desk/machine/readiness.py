"""Waiting for a machine: an ordered list of requirements, one deadline, a hint for each failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from desk.errors import DeskError, MachineError

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that must hold before a machine is of use.

    ``probe`` returns an empty text when it holds and else says what is missing; it takes the
    seconds left and stays below some two seconds itself. An error that it raises ends the wait. A
    ``fatal`` requirement is one that waiting will not mend once it is violated: it must hold at
    its first probe and at every round after it.
    """

    description: str
    probe: Callable[[float], str]
    hint: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Readiness:
    """When each requirement was met, in seconds after the wait began, in order."""

    met_s: tuple[tuple[str, float], ...] = field(default=())


def wait_ready(
    name: str,
    requirements: Sequence[Requirement],
    *,
    deadline_s: float,
    cancelled: threading.Event | None = None,
    diagnose: Callable[[], str] = lambda: "",
    progress: Callable[[str], None] = lambda _sentence: None,
) -> Readiness:
    """Return when every requirement of machine ``name`` holds.

    Raises ``MachineError`` that names the first requirement that did not hold, with its hint and
    the driver's diagnosis; whatever a probe raises; ``MachineError`` when ``cancelled`` is set.
    """
    cancelled = cancelled or threading.Event()
    started = time.monotonic()
    deadline = started + deadline_s
    met: list[tuple[str, float]] = []
    watched: list[Requirement] = []
    for requirement in requirements:
        if not requirement.fatal:
            progress(f"Waiting for {requirement.description}")
        while True:
            left_s = deadline - time.monotonic()
            for earlier in watched:
                _demand(name, earlier, left_s, diagnose)
            missing = requirement.probe(max(left_s, 0.1))
            if not missing:
                break
            if requirement.fatal:
                raise _failure(name, requirement, missing, diagnose)
            if left_s <= 0:
                missing = f"{missing} after {deadline_s:g} s"
                raise _failure(name, requirement, missing, diagnose)
            if cancelled.wait(_POLL_S):
                raise MachineError(
                    f"the start of machine {name} was cancelled",
                    hint=f"`desk machine start {name}` goes on from here.",
                )
        met.append((requirement.description, time.monotonic() - started))
        if requirement.fatal:
            watched.append(requirement)
    return Readiness(tuple(met))


def _demand(
    name: str, requirement: Requirement, left_s: float, diagnose: Callable[[], str]
) -> None:
    missing = requirement.probe(max(left_s, 0.1))
    if missing:
        raise _failure(name, requirement, missing, diagnose)


def _failure(
    name: str, requirement: Requirement, missing: str, diagnose: Callable[[], str]
) -> DeskError:
    diagnosis = diagnose()
    because = f"; {diagnosis}" if diagnosis else ""
    return MachineError(f"machine {name} is not ready: {missing}{because}", hint=requirement.hint)
