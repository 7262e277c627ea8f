"""Machines under other names and in other places: rename, clone, snapshot, restore.

All of this is for machines whose driver keeps everything in the machine's directory
(``Features.portable``). What a copy gets of its own are its keys, its port and its name.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from desk.errors import Conflict, MachineError, NotFound, UsageError
from desk.machine.coming_up import Machine
from desk.machine.driver import Progress
from desk.machine.drivers.qemu_disk import FACT_FILE_SYSTEM
from desk.machine.manager import Manager
from desk.machine.model import State, check_name
from desk.machine.process import write_whole
from desk.machine.sparse import copy_sparse, host_bytes
from desk.ssh.session import Session

SNAPSHOT_FORMAT = 1
_SNAPSHOT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A machine's disk as it was. ``size_bytes`` is the room that it takes by itself at most."""

    name: str
    created_at: str  # ISO 8601, UTC
    size_bytes: int


class MachineCopies:
    """Renames and copies the machines of a ``Manager``."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    # --- names and twins -------------------------------------------------------------------

    def rename(self, name: str, new: str) -> None:
        """Give a stopped machine another name; everything of it stays.

        Raises ``Conflict`` where it runs, or where the new name is taken; then nothing changed.
        """
        self._check_portable(self._manager.open(name))
        with ExitStack() as stack:
            # Always in the same order: two renames that cross must not wait for each other.
            for each in sorted({name, check_name(new)}):
                stack.enter_context(self._manager.reserved(each, "renaming"))
            machine = self._manager.open(name)
            self._check_stopped(machine, "renamed")
            self._manager.check_free(new)
            target = self._manager.home.machine(new)
            with _named_errors(target.directory):
                if target.directory.exists():  # debris, as `create` says
                    shutil.rmtree(target.directory)
                machine.paths.directory.rename(target.directory)
            try:
                renamed = self._manager.open(new)
                self._manager.respecify(renamed, replace(machine.record.spec, name=new))
            except BaseException:
                target.directory.rename(machine.paths.directory)
                raise

    def clone(self, name: str, new: str, progress: Progress) -> None:
        """Make a machine with the same disk and settings, stopped. The original may run."""
        with self._manager.held(name, "copying") as machine:
            self._check_portable(machine)
            spec = replace(machine.record.spec, name=check_name(new), options=_own(machine))

            def fill(disk: Path) -> None:
                progress(f"Copying the disk of machine {name}")
                with self._still(machine):
                    copy_disk(machine.paths.data_disk, disk)

            self._manager.create(spec, progress, disk=fill, facts=_image(machine))

    # --- snapshots -------------------------------------------------------------------------

    def snapshots(self, name: str) -> list[Snapshot]:
        """Return the machine's snapshots, the oldest first."""
        machine = self._manager.open(name)
        found = []
        for file in machine.paths.snapshots.glob("*/snapshot.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                document = json.loads(file.read_text("utf-8"))
                disk = file.with_name("data.img")
                found.append(
                    Snapshot(file.parent.name, str(document["created_at"]), host_bytes(disk))
                )
        return sorted(found, key=lambda each: (each.created_at, each.name))

    def snapshot(self, name: str, snapshot: str, progress: Progress) -> str:
        """Keep the machine's disk as it is now and return the snapshot's name.

        A running machine stands still meanwhile; what its programs had written is in it, as after
        a power cut that a ``sync`` came before.
        """
        snapshot = snapshot or time.strftime("%Y%m%d-%H%M%S")
        if not _SNAPSHOT_NAME.match(snapshot):
            raise UsageError(
                f"{snapshot!r} cannot name a snapshot",
                hint="Use letters, digits, '.', '_' and '-', starting with a letter or digit.",
            )
        with self._manager.held(name, "copying") as machine:
            self._check_portable(machine)
            target = machine.paths.snapshots / snapshot
            if target.exists():
                raise Conflict(
                    f"machine {name} has a snapshot {snapshot} already",
                    hint="Choose another name, or remove it with `desk machine snapshots --rm`.",
                )
            unfinished = machine.paths.snapshots / f".{snapshot}"
            progress(f"Copying the disk of machine {name}")
            with _named_errors(target), ExitStack() as undo:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(mode=0o700, parents=True)
                undo.callback(shutil.rmtree, unfinished, ignore_errors=True)
                with self._still(machine):
                    created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                    copy_disk(machine.paths.data_disk, unfinished / "data.img")
                document = {
                    "format": SNAPSHOT_FORMAT,
                    "created_at": created_at,
                    **_image(machine),
                }
                write_whole(unfinished / "snapshot.json", json.dumps(document, indent=2) + "\n")
                unfinished.rename(target)
                undo.pop_all()
        return snapshot

    def restore(self, name: str, snapshot: str, progress: Progress) -> None:
        """Put a stopped machine's disk back to a snapshot, which stays. What was written since is
        gone; whatever is raised, the disk is the old one or the snapshot's."""
        with self._manager.held(name, "copying") as machine:
            self._check_portable(machine)
            self._check_stopped(machine, "restored")
            source = self._snapshot_directory(machine, snapshot) / "data.img"
            unfinished = machine.paths.data_disk.with_suffix(".new")
            progress(f"Copying the disk of snapshot {snapshot}")
            with _named_errors(machine.paths.data_disk):
                unfinished.unlink(missing_ok=True)
                copy_disk(source, unfinished)
                self._manager.update_facts(machine, {FACT_FILE_SYSTEM: ""})
                unfinished.replace(machine.paths.data_disk)

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        with self._manager.held(name, "copying") as machine:
            directory = self._snapshot_directory(machine, snapshot)
            with _named_errors(directory):
                shutil.rmtree(directory)

    def _snapshot_directory(self, machine: Machine, snapshot: str) -> Path:
        directory = machine.paths.snapshots / snapshot
        if not _SNAPSHOT_NAME.match(snapshot) or not (directory / "snapshot.json").is_file():
            raise NotFound(
                f"machine {machine.name} has no snapshot {snapshot}",
                hint=f"See `desk machine snapshots {machine.name}`.",
            )
        return directory

    # --- conditions ------------------------------------------------------------------------

    def _check_portable(self, machine: Machine) -> None:
        if not machine.driver.features.portable:
            raise UsageError(
                f"machine {machine.name} is more than its files here",
                hint="Only machines of the driver qemu can be renamed and copied.",
            )

    def _check_stopped(self, machine: Machine, verb: str) -> None:
        state = machine.driver.state()
        if state is not State.STOPPED:
            raise Conflict(
                f"machine {machine.name} is {state.value.lower()} and cannot be {verb}",
                hint=f"`desk machine stop {machine.name}` stops it.",
            )

    @contextlib.contextmanager
    def still_disk(self, name: str) -> Iterator[tuple[Machine, Path]]:
        """Hold a machine and a disk with what its data disk holds now, which nothing writes to."""
        with self._manager.held(name, "copying") as machine:
            self._check_portable(machine)
            if machine.driver.state() is State.STOPPED:
                yield machine, machine.paths.data_disk
                return
            copy = machine.paths.data_disk.with_suffix(".copy")
            with ExitStack() as undo:
                undo.callback(copy.unlink, missing_ok=True)
                with self._still(machine):
                    copy_disk(machine.paths.data_disk, copy)
                yield machine, copy

    @contextlib.contextmanager
    def _still(self, machine: Machine) -> Iterator[None]:
        """Let nothing write to the machine's disk, which holds what was written until now."""
        if machine.driver.state() is not State.RUNNING:
            yield
            return
        endpoint = machine.driver.endpoint()
        if endpoint is not None:
            with Session.connect(endpoint) as session:
                session.run("sync")
        # A command that is killed here leaves a paused machine, which `start` wakes.
        machine.driver.freeze()
        try:
            yield
        finally:
            machine.driver.thaw()


def copy_disk(source: Path, target: Path) -> None:
    """Copy a disk file to where none is, or in the place of an empty new one; ``MachineError``."""
    with _named_errors(target):
        if not source.is_file():
            raise MachineError(f"{source} is missing", hint="Restore the file from a backup.")
        target.unlink(missing_ok=True)
        copy_sparse(source, target)


def _own(machine: Machine) -> dict[str, str]:
    """The options of a copy: a port that was fixed can be held by one machine only."""
    options = machine.record.spec.options
    return {key: value for key, value in options.items() if key != "ssh_port"}


def _image(machine: Machine) -> dict[str, str]:
    image = machine.record.facts.get("image", "")
    return {"image": image} if image else {}


@contextlib.contextmanager
def _named_errors(what: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"cannot write {error.filename or what}: {error.strerror}",
            hint="Make room on that disk, or set DESK_HOME to a directory that you may write to.",
        ) from error
