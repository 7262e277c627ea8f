"""What is mounted where, as this process's mount namespace shows it. See proc(5), mountinfo."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from deskd.record import Record

_ESCAPE = re.compile(r"\\([0-7]{3})")  # stands for a blank and the like


class Mounted(Record):
    """One mount: its mount point, and whether it tells others of what is mounted below it."""

    target: str
    shared: bool


def read() -> Iterator[Mounted]:
    """Yield all mounts, each after those it may hide."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.partition(" - ")[0].split(" ")
            target = _ESCAPE.sub(lambda found: chr(int(found[1], 8)), fields[4])
            yield Mounted(target, any(word.startswith("shared:") for word in fields[6:]))


def below(directory: str) -> list[str]:
    """List the mount points at or below a directory, the lowest last."""
    inside = os.path.realpath(directory).rstrip("/") + "/"
    return sorted(found.target for found in read() if f"{found.target}/".startswith(inside))
