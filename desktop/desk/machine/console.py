"""Why a guest does not come up, in words, from its console log.

The patterns are the Linux kernel's own messages and the stage lines of Desk's guest image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

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
    """Something that a console log shows; ``fatal`` when waiting any longer is in vain."""

    text: str
    fatal: bool


_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"VFS: Unable to mount root fs|No working init found", re.IGNORECASE),
        "the guest's kernel found no root file system: the guest image and its kernel do not "
        "belong together",
    ),
    (
        re.compile(r"Kernel panic - not syncing: (?P<why>.+)"),
        "the guest's kernel panicked: {why}",
    ),
    (
        re.compile(r"(?P<why>invalid opcode|general protection fault|double fault).*SMP"),
        "the guest's kernel met a processor fault ({why}): the accelerator or the CPU model "
        "does not suit this computer; `desk doctor --probe` tries it again",
    ),
    (
        re.compile(r"No space left on device|ENOSPC"),
        "the machine's data disk is full: remove images or containers, or make the disk larger",
    ),
    (
        re.compile(r"Out of memory: Killed process \d+ \((?P<why>[^)]+)\)"),
        "the guest ran out of memory and killed {why}: give the machine more memory",
    ),
    (
        re.compile(r"(?:I/O error, dev|Buffer I/O error on dev) (?P<why>vd\w)"),
        "the guest cannot read or write its disk {why}: the host's disk may be full or damaged",
    ),
    (
        re.compile(r"EXT4-fs error.*|EXT4-fs \(\w+\): (?:VFS: Can't find|bad|corrupt).*"),
        "the file system on the machine's data disk is damaged",
    ),
    (
        re.compile(r"erofs.*(?:corrupt|cannot|failed)|SQUASHFS error", re.IGNORECASE),
        "the guest's root image is damaged: install the guest image again",
    ),
)


def finding(console_log: Path) -> Finding | None:
    """Return the first thing in the log that explains a failure; ``None`` where nothing does."""
    lines = last_lines(console_log, _TAIL_LINES, limit_bytes=1 << 18)
    for line in lines:
        said = _FATAL.match(line)
        if said:
            return Finding(f"the guest says: {said[1]}", fatal=True)
    hopeless = sum(_PANIC in line for line in lines) >= _PANICS_TO_GIVE_UP
    for pattern, text in _PATTERNS:
        for line in lines:
            found = pattern.search(line)
            if found:
                why = found.groupdict().get("why", "")
                return Finding(text.format(why=why.strip(" -]")), fatal=hopeless)
    return None


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
        return f"{found.text} (see {console_log})"
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
