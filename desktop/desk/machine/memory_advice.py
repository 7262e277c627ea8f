"""Which memory a machine should have, by what its containers were seen to hold at most.

The rules are pure: the engine observes (``GET /desk/memory``), and ``MemoryDial`` asks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from desk.machine.model import LEAST_MEMORY_MIB

_MIB = 1 << 20
STEP_MIB = 256
"""Advice is a multiple of it."""
_LEAST_HEADROOM_BYTES = 128 * _MIB
_HEADROOM_PART = 4
_LEAST_SAVING_MIB = 2 * STEP_MIB
_SAVING_PART = 4
RECENT_S = 7 * 86400.0
"""A container that ended longer ago counts no more."""
_ENOUGH_S = 3600.0
_ENOUGH_RUNS = 3


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of a container that runs or ran. Times are Unix times of its last run;
    ``finished_s`` is ``None`` while it runs. The name may be empty: nobody gave it one.

    ``peak_bytes`` is the most that it held at once without page cache, ``peak_usage_bytes`` the
    kernel's own mark with it. ``limit_bytes`` is 0 where there is none.
    """

    name: str
    image: str
    held_bytes: int
    peak_bytes: int
    peak_usage_bytes: int
    limit_bytes: int
    observed_s: float
    runs: int
    started_s: float
    finished_s: float | None

    @property
    def running(self) -> bool:
        return self.finished_s is None

    @property
    def needed_bytes(self) -> int:
        """What it must be given: its peak, or the limit that it has got since; never less than it
        holds now."""
        peak_bytes = self.peak_bytes
        if self.limit_bytes:
            peak_bytes = min(peak_bytes, self.limit_bytes)
        return max(peak_bytes, self.held_bytes)

    @property
    def seldom_seen(self) -> bool:
        """Whether too little was seen of it to know its peak."""
        return self.observed_s < _ENOUGH_S and self.runs < _ENOUGH_RUNS


@dataclass(frozen=True, slots=True)
class Memory:
    """A machine's memory now: its ceiling, what kernel and engine hold beside the containers, and
    the lowest ceiling for what is held in this moment."""

    ceiling_mib: int
    own_bytes: int
    least_mib: int


class Verdict(Enum):
    """What is to be done with the ceiling."""

    UNKNOWN = "unknown"  # nothing was seen yet
    RIGHT = "right"
    RAISE = "raise"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Advice:
    """The advice, and what it stands on.

    ``together`` are the containers that held most of those that ran at one time; ``needed_mib`` is
    what they, kernel and engine take at their peaks, and ``advised_mib`` that with room for page
    cache and growth. ``sized``: the machine's memory is Desk's to set.
    """

    verdict: Verdict
    ceiling_mib: int
    needed_mib: int
    advised_mib: int
    observed: Sequence[Observed]
    together: Sequence[Observed]
    sized: bool

    @property
    def observed_s(self) -> float:
        """How long the containers that the advice stands on were seen, the longest of them."""
        return max((each.observed_s for each in self.together), default=0.0)

    @property
    def seldom_seen(self) -> Sequence[Observed]:
        """Those of ``together`` of which too little was seen, so that the advice is weak."""
        return [each for each in self.together if each.seldom_seen]

    @property
    def size(self) -> str:
        """``advised_mib`` as ``desk machine set --memory`` takes it."""
        whole, rest = divmod(self.advised_mib, 1024)
        return f"{self.advised_mib}m" if rest else f"{whole}g"


def advise(
    memory: Memory, observed: Sequence[Observed], *, now_s: float, sized: bool = True
) -> Advice:
    """Return the advice for a machine with this memory and these containers."""
    recent = [
        each for each in observed if each.finished_s is None or each.finished_s >= now_s - RECENT_S
    ]
    group = largest_together(recent)
    peaks_bytes = sum(each.needed_bytes for each in group)
    needed_bytes = memory.own_bytes + peaks_bytes
    headroom_bytes = max(_LEAST_HEADROOM_BYTES, peaks_bytes // _HEADROOM_PART)
    least_mib = max(LEAST_MEMORY_MIB, memory.least_mib)
    advised_mib = _stepped(max(least_mib, _mib(needed_bytes + headroom_bytes)))
    return Advice(
        verdict=(
            _verdict(memory.ceiling_mib, _mib(needed_bytes + headroom_bytes // 2), advised_mib)
            if group
            else Verdict.UNKNOWN
        ),
        ceiling_mib=memory.ceiling_mib,
        needed_mib=_mib(needed_bytes),
        advised_mib=advised_mib,
        observed=observed,
        together=group,
        sized=sized,
    )


def largest_together(observed: Iterable[Observed]) -> list[Observed]:
    """Return those whose last runs had a moment in common and whose peaks make the largest sum of
    all such, the largest first.

    Their peaks need not have come in that moment; nobody can promise that they never will.
    """
    known = [each for each in observed if each.needed_bytes > 0]
    best: list[Observed] = []
    best_bytes = 0
    # The largest sum begins with some container's start.
    for moment_s in {each.started_s for each in known}:
        group = [each for each in known if _ran_at(each, moment_s)]
        total = sum(each.needed_bytes for each in group)
        if total > best_bytes:
            best, best_bytes = group, total
    return sorted(best, key=lambda each: (-each.needed_bytes, each.name))


def _ran_at(container: Observed, moment_s: float) -> bool:
    ended_s = container.finished_s
    return container.started_s <= moment_s and (ended_s is None or moment_s < ended_s)


def _verdict(ceiling_mib: int, enough_mib: int, advised_mib: int) -> Verdict:
    """Leave alone what would be moved by a step only: the figures move by themselves, too."""
    if ceiling_mib < min(enough_mib, advised_mib):
        return Verdict.RAISE
    if ceiling_mib - advised_mib >= max(_LEAST_SAVING_MIB, ceiling_mib // _SAVING_PART):
        return Verdict.LOWER
    return Verdict.RIGHT


def _mib(size_bytes: int) -> int:
    return -(-size_bytes // _MIB)


def _stepped(mib: int) -> int:
    return -(-mib // STEP_MIB) * STEP_MIB
