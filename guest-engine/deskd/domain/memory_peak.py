"""The most memory that containers ever held, and the pure rules by which that is observed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class MemoryPeak(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What was observed of one container, or of several that count as the same, over all runs.

    ``held_bytes`` is the most that was held at once: the processes' own memory, tmpfs and what the
    kernel needs for them, without page cache. ``usage_bytes`` is the kernel's own high-water mark,
    page cache included. ``observed_ns`` is how long the ``runs`` that have ended took together.
    """

    held_bytes: int = 0
    usage_bytes: int = 0
    observed_ns: int = 0
    runs: int = 0


class PastPeak(msgspec.Struct, kw_only=True, frozen=True):
    """What is kept of containers that were removed: by image and name, or, where nobody gave them
    a name, by image and command (``command`` is its digest). The times are those of the last run.
    """

    image: str
    name: str
    command: str
    peak: MemoryPeak
    started_at_ns: int
    finished_at_ns: int

    @property
    def key(self) -> str:
        return peak_key(self.image, self.name, self.command)


def peak_key(image: str, name: str, command: str) -> str:
    """Return what ``PastPeak`` is found by; neither images nor names have a line feed."""
    return f"{image}\n{name}" if name else f"{image}\n\n{command}"


def raised(
    peak: MemoryPeak, *, held: int, cache: int, highest: int, highest_before: int
) -> MemoryPeak:
    """Return the peak after a look at a running container.

    The kernel keeps a high-water mark of all that it charges, and none of what is held. Where that
    mark has risen since the last look, from ``highest_before`` to ``highest``, the container held
    about so much less than it as there is ``cache`` now. Cache that was given up since then counts
    as held: the figure may be too high for files that came and went between two looks, and is never
    above the kernel's.
    """
    if highest > highest_before:
        held = max(held, highest - cache)
    return msgspec.structs.replace(
        peak,
        held_bytes=max(peak.held_bytes, held),
        usage_bytes=max(peak.usage_bytes, highest, held),
    )


def after_run(peak: MemoryPeak, ran_ns: int) -> MemoryPeak:
    """Return the peak with one more run, of this length."""
    return msgspec.structs.replace(
        peak, observed_ns=peak.observed_ns + max(ran_ns, 0), runs=peak.runs + 1
    )


def together(first: MemoryPeak | None, second: MemoryPeak | None) -> MemoryPeak:
    """Return what was observed of both, as of one."""
    a, b = first or MemoryPeak(), second or MemoryPeak()
    return MemoryPeak(
        held_bytes=max(a.held_bytes, b.held_bytes),
        usage_bytes=max(a.usage_bytes, b.usage_bytes),
        observed_ns=a.observed_ns + b.observed_ns,
        runs=a.runs + b.runs,
    )


def too_many(peaks: Iterable[PastPeak], most: int) -> list[PastPeak]:
    """Return those to forget so that ``most`` are left: first those without a name, of which one
    command after the other may make many, then those whose last run is longest ago."""
    ordered = sorted(peaks, key=lambda past: (bool(past.name), past.finished_at_ns))
    return ordered[: max(len(ordered) - most, 0)]
