"""How far a guest came and why it does not come up, in words, from its console log.

Its lines are the Linux kernel's, which ``known_problems`` explains, and the stages of Desk's guest
image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from desk.machine import known_problems
from desk.machine.process import last_lines

_TAIL_LINES = 400
_PANIC = "Kernel panic - not syncing"
_PANICS_TO_GIVE_UP = 3
"""The guest restarts by itself after a panic. Under emulation one can be a fault of the emulator
that does not come back; several in a row are the guest's own."""
_STAGE = re.compile(r"^DESK-STAGE (\S+) ([0-9.]+)")
_FATAL = re.compile(r"^DESK-(?:FATAL|ERROR):? (.+)")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a console log shows, and what to do about it (empty where the log tells
    that itself); ``fatal`` when waiting any longer is in vain."""

    text: str
    remedy: str
    fatal: bool


def finding(console_log: Path) -> Finding | None:
    """Return the first thing in the log that explains a failure; ``None`` where nothing does."""
    lines = last_lines(console_log, _TAIL_LINES, limit_bytes=1 << 18)
    for line in lines:
        said = _FATAL.match(line)
        if said:
            return Finding(f"the guest says: {said[1]}", "", fatal=True)
    match = next(known_problems.search("console", lines), None)
    if match is None:
        return None
    hopeless = sum(_PANIC in line for line in lines) >= _PANICS_TO_GIVE_UP
    return Finding(match.text, match.problem.remedy, fatal=hopeless)


def stages(console_log: Path) -> list[tuple[str, float]]:
    """Return the boot stages that the guest reported, with seconds since its kernel began."""
    found = []
    for line in last_lines(console_log, 10_000, limit_bytes=1 << 20):
        match = _STAGE.match(line)
        if match:
            found.append((match[1], float(match[2])))
    return found


def explain(console_log: Path) -> str:
    """Return one sentence about how far the guest came and what stopped it."""
    found = finding(console_log)
    if found is not None:
        return f"{found.text} (see {console_log}). {found.remedy}".rstrip(" .")
    reached = stages(console_log)
    if reached:
        name, seconds = reached[-1]
        return f"the guest came as far as its stage {name} after {seconds:g} s (see {console_log})"
    lines = last_lines(console_log)
    if lines:
        return f"the guest's console ended with: {lines[-1]} (see {console_log})"
    return (
        "the guest printed nothing: the accelerator may not work, `desk doctor --probe` tries it "
        f"(console log {console_log})"
    )
