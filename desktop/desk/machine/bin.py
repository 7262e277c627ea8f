"""Removed machines: their directories, kept for a while with disk, snapshots and keys. Checkpoints
of machines (``checkpoints``) are kept beside them, under the same limits.

A directory moves as a whole by one rename, so a machine is either there or in the bin. Its name in
the bin says which machine it was and when it went; only what is a machine by itself (a virtual
one, all of it files) can come back.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from desk.errors import Conflict, MachineError
from desk.machine.manager import Manager
from desk.machine.sparse import host_bytes
from desk.paths import Home, MachinePaths

KEPT_S = 24 * 3600.0
MOST_BYTES = 32 << 30
"""What is more than this together goes, the oldest first; the latest one stays however large."""
LEAST_FREE_PARTS = 20
"""While less than a twentieth of the disk is free the bin keeps nothing."""

_PLACE = re.compile(r"(?P<name>[^.].*)@(?P<removed_ns>\d+)\Z")
_HALF_DELETED = ".*@*"
UNFINISHED_PREFIX = ".unfinished-"
_UNFINISHED_S = 3600.0


@dataclass(frozen=True, slots=True)
class BinnedMachine:
    """A machine in the bin. ``before`` is empty for one that was removed; a checkpoint has there
    what it was made before."""

    name: str
    removed_ns: int
    directory: Path
    before: str = ""

    @property
    def size_bytes(self) -> int:
        """What this computer's disk gets back with it."""
        return sum(
            host_bytes(Path(directory, name))
            for directory, _, names in os.walk(self.directory)
            for name in names
        )

    @property
    def id(self) -> str:
        return self.directory.name


class MachineBin:
    """Takes machines, lists them and gives them back."""

    def __init__(
        self,
        manager: Manager,
        usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage,
    ) -> None:
        self._manager = manager
        self._home: Home = manager.home
        self._usage = usage

    def take(self, name: str, progress: Callable[[str], None]) -> bool:
        """Switch a machine off and move it into the bin; return whether its driver could. One
        that is no files of its own is left as it is, and so is one that cannot be read."""
        if not self._manager.open(name).driver.features.portable:
            return False
        place = self._home.bin / f"{name}@{time.time_ns()}"
        with self._manager.ended(name, progress) as machine:
            try:
                self._home.bin.mkdir(mode=0o700, exist_ok=True)
                machine.paths.directory.rename(place)
            except OSError as error:
                raise MachineError(
                    f"cannot move {machine.paths.directory} into the bin: {error.strerror}",
                    hint=f"`desk machine rm --force {name}` deletes it.",
                ) from error
        with contextlib.suppress(MachineError):  # of another one; this one has gone
            self.enforce()
        return True

    def contents(self) -> Sequence[BinnedMachine]:
        """Return what there is, the latest first."""
        try:
            places = list(self._home.bin.iterdir())
        except FileNotFoundError:
            return []
        found = [_read(place) for place in places]
        return sorted((each for each in found if each), key=lambda each: -each.removed_ns)

    def put_back(self, binned: BinnedMachine) -> None:
        """Make it a machine again, stopped. Raises ``Conflict`` where its name is taken."""
        with self._manager.reserved(binned.name, "creating"):
            if self._manager.exists(binned.name):
                raise Conflict(
                    f"there is a machine {binned.name} now",
                    hint=f"`desk machine rename {binned.name} OTHER` makes its name free.",
                )
            target = self._home.machine(binned.name).directory
            try:
                if target.exists():  # debris: a machine exists only with its machine.json
                    shutil.rmtree(target)
                binned.directory.rename(target)
            except OSError as error:
                raise MachineError(
                    f"cannot bring machine {binned.name} back: {error.strerror}",
                    hint=f"Its files are in {binned.directory}.",
                ) from error

    def empty(self) -> int:
        """Delete everything for good; return the bytes that the disk got back."""
        return sum(_delete(each) for each in self.contents())

    def delete(self, binned: BinnedMachine) -> None:
        """Delete one for good; idempotent."""
        _delete(binned)

    def enforce(self) -> None:
        """Delete what is too old or too much, and everything where the disk is short."""
        for rest in self._home.bin.glob(_HALF_DELETED):
            shutil.rmtree(rest, ignore_errors=True)
        for rest in self._home.bin.glob(f"{UNFINISHED_PREFIX}*"):
            with contextlib.suppress(OSError):  # it was finished in this moment
                if time.time() - rest.stat().st_mtime > _UNFINISHED_S:
                    shutil.rmtree(rest)
        entries = self.contents()
        if not entries:
            return
        total, _used, free = self._usage(self._home.bin)
        short = free < total // LEAST_FREE_PARTS
        kept_bytes = 0
        for each in entries:
            too_old = time.time_ns() - each.removed_ns > KEPT_S * 1e9
            kept_bytes += each.size_bytes
            if short or too_old or (kept_bytes > MOST_BYTES and each is not entries[0]):
                _delete(each)


def _read(place: Path) -> BinnedMachine | None:
    match = _PLACE.match(place.name)
    if match is None:
        return None
    note = MachinePaths(place).checkpoint
    try:
        before = str(json.loads(note.read_text("utf-8"))["before"]) if note.exists() else ""
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing that this Desk knows
    return BinnedMachine(match["name"], int(match["removed_ns"]), place, before)


def _delete(binned: BinnedMachine) -> int:
    size_bytes = binned.size_bytes
    # First: what is half deleted is no machine any more.
    gone = binned.directory.with_name(f".{binned.directory.name}")
    try:
        binned.directory.rename(gone)
        shutil.rmtree(gone)
    except FileNotFoundError:
        return 0  # another command did it
    except OSError as error:
        raise MachineError(
            f"cannot delete {error.filename or gone}: {error.strerror}",
            hint=f"Remove the directory {gone} by hand.",
        ) from error
    return size_bytes
