"""Machines as they were before a change of their settings, an upgrade or a reset.

A checkpoint is a directory in the bin of machines: the machine's settings, and its data disk where
the change touches that. It has the bin's limits of age and room, and ``desk undo`` brings it back.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from desk.errors import Conflict, MachineError, UsageError
from desk.machine.bin import LEAST_FREE_PARTS, UNFINISHED_PREFIX, BinnedMachine, MachineBin
from desk.machine.coming_up import Machine
from desk.machine.copies import copy_disk
from desk.machine.driver import Progress
from desk.machine.drivers.qemu_disk import FACT_FILE_SYSTEM
from desk.machine.manager import Manager
from desk.machine.model import MachineSpec, State
from desk.machine.process import write_whole
from desk.machine.settings_file import says
from desk.machine.sparse import host_bytes, make_sparse
from desk.machine.store import MachineFile, MachineRecord
from desk.paths import MachinePaths

if TYPE_CHECKING:
    from desk.machine.settings_change import MachineSettings

FORMAT = 1
_GIB = 1 << 30
_IMAGE_FACTS = ("image", "previous_image")


class Before(StrEnum):
    """What a checkpoint was made before."""

    SETTINGS = "settings"
    UPGRADE = "upgrade"
    RESET = "reset"
    UNDO = "undo"


class Checkpoints:
    """Makes checkpoints, resets machines, and brings machines back to what they were."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._bin = MachineBin(manager)

    def take(self, machine: Machine, before: Before, *, disk: Path | None = None) -> BinnedMachine:
        """Keep the settings of a machine that is held, and a copy of ``disk``.

        Raises ``MachineError``; then there is no checkpoint.
        """
        home, paths = self._manager.home, machine.paths
        taken_ns = time.time_ns()
        place = home.bin / f"{machine.name}@{taken_ns}"
        unfinished = home.bin / f"{UNFINISHED_PREFIX}{taken_ns}"
        try:
            home.bin.mkdir(mode=0o700, exist_ok=True)
            unfinished.mkdir(mode=0o700)
            for file in (paths.config, paths.settings):
                if file.exists():
                    shutil.copyfile(file, unfinished / file.name)
            if disk is not None:
                copy_disk(disk, MachinePaths(unfinished).data_disk)
            note = {"format": FORMAT, "before": before}
            write_whole(MachinePaths(unfinished).checkpoint, json.dumps(note) + "\n")
            unfinished.rename(place)
        except OSError as error:
            raise MachineError(
                f"machine {machine.name} as it is cannot be kept in {home.bin}: {error.strerror}",
                hint="Make room on this computer's disk; nothing was changed.",
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        with contextlib.suppress(MachineError):  # of older ones
            self._bin.enforce()
        return BinnedMachine(machine.name, taken_ns, place, before)

    def keep_settings(self, machine: Machine) -> None:
        """Keep the settings of a machine that is held, where there is room for them."""
        with contextlib.suppress(MachineError):  # a machine starts all the same
            self.take(machine, Before.SETTINGS)

    def forget(self, checkpoint: BinnedMachine) -> None:
        """Delete a checkpoint before a change that did not come about."""
        with contextlib.suppress(MachineError):  # it goes with its age
            self._bin.delete(checkpoint)

    def has_room(self, disk: Path) -> bool:
        """Whether a copy of a disk leaves this computer's the room that the bin leaves it."""
        total, _used, free = shutil.disk_usage(self._manager.home.directory)
        return free - host_bytes(disk) > total // LEAST_FREE_PARTS

    def reset(self, name: str, progress: Progress) -> None:
        """Give a machine an empty data disk. Name, keys, address, settings and snapshots stay, and
        one that runs runs again. The disk that it had goes into the bin.

        Raises ``UsageError`` where the disk is none of Desk's, and ``MachineError``.
        """
        self._check_portable(name)
        runs = self._stop(name, progress)
        progress(f"Giving machine {name} an empty disk")
        with self._stopped(name) as machine:
            self._set_disk_aside(machine, Before.RESET)
            with _named(machine.paths.data_disk):
                size_bytes = machine.record.spec.disk_gib * _GIB
                make_sparse(machine.paths.data_disk, size_bytes)
            self._manager.update_facts(machine, {FACT_FILE_SYSTEM: ""})
        if runs:
            self._manager.start(name, progress)

    def bring_back(
        self, binned: BinnedMachine, settings: MachineSettings, progress: Progress
    ) -> None:
        """Make a machine what it was at a checkpoint, which is gone then. What it is now is kept in
        a checkpoint of its own. With a disk, one that runs is restarted, which ``progress`` is told
        first; settings alone are changed as ``settings`` changes them, and a disk that has grown
        stays so.

        Raises ``Conflict`` where the machine is not there, and ``MachineError``.
        """
        name = binned.name
        if not self._manager.exists(name):
            raise Conflict(
                f"there is no machine {name} any more",
                hint=f"`desk undo --list` shows whether it was removed, and `desk undo 'machine"
                f" {name}'` brings it back first.",
            )
        if has_disk(binned):
            self.bring_disk_back(binned, progress)
            return
        record, text = _settings(MachinePaths(binned.directory))
        settings.become(name, record.spec, text, progress)
        self._bin.delete(binned)

    def bring_disk_back(self, binned: BinnedMachine, progress: Progress) -> None:
        """Do what ``bring_back`` does with a checkpoint that has a disk."""
        name, kept = binned.name, MachinePaths(binned.directory)
        record, text = _settings(kept)
        runs = self._stop(name, progress)
        with self._stopped(name) as machine:
            self._set_disk_aside(machine, Before.UNDO)
            with _named(machine.paths.data_disk):
                kept.data_disk.rename(machine.paths.data_disk)
            spec: MachineSpec = replace(record.spec, name=name)
            features, file = machine.driver.features, machine.paths.settings
            agrees = text is not None and says(text, file, spec, features)
            self._manager.respecify(machine, spec, settings=text if agrees else None)
            facts = {key: record.facts.get(key, "") for key in _IMAGE_FACTS}
            self._manager.update_facts(machine, {**facts, FACT_FILE_SYSTEM: ""})
        self._bin.delete(binned)
        if runs:
            self._manager.start(name, progress)

    def _set_disk_aside(self, machine: Machine, before: Before) -> None:
        """Keep a machine that is held with its disk, which it does not have afterwards."""
        kept = self.take(machine, before)
        if machine.paths.data_disk.exists():
            with _named(machine.paths.data_disk):
                machine.paths.data_disk.rename(MachinePaths(kept.directory).data_disk)

    def _check_portable(self, name: str) -> None:
        if not self._manager.open(name).driver.features.portable:
            raise UsageError(
                f"the disk of machine {name} is not a file of Desk's",
                hint="`desk system prune --all --volumes` empties its engine; one of the driver"
                " vagrant can be removed and created again.",
            )

    def _stop(self, name: str, progress: Progress) -> bool:
        """Stop a machine; return whether it was on."""
        if self._manager.open(name).driver.state() is State.STOPPED:
            return False
        progress(f"Restarting machine {name}")
        self._manager.stop(name, progress)
        return True

    @contextlib.contextmanager
    def _stopped(self, name: str) -> Iterator[Machine]:
        with self._manager.held(name, "setting") as machine:
            if machine.driver.state() is not State.STOPPED:
                raise Conflict(
                    f"machine {name} was started meanwhile", hint="Give the command again."
                )
            yield machine


def has_disk(binned: BinnedMachine) -> bool:
    """Whether a checkpoint has the data disk of its machine."""
    return MachinePaths(binned.directory).data_disk.exists()


def _settings(kept: MachinePaths) -> tuple[MachineRecord, str | None]:
    """Return a checkpoint's record, and the text of its settings file where it has one."""
    text = kept.settings.read_text("utf-8") if kept.settings.exists() else None
    return MachineFile(kept).read(), text


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"{file} cannot be exchanged: {error.strerror}",
            hint="`desk undo` brings the disk back once that is mended.",
        ) from error
