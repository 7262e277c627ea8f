"""Changes a machine's settings, by its file or by single wishes: wholly or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from desk.errors import UsageError
from desk.machine.coming_up import Machine
from desk.machine.disks import MachineDisks
from desk.machine.driver import Progress
from desk.machine.engine_settings import ENGINE_OPTIONS, check_engine_options
from desk.machine.manager import Manager
from desk.machine.memory import MemoryDial
from desk.machine.model import MachineSpec, State
from desk.machine.settings_file import changes, parse, render
from desk.machine.sharing import SHARING_OPTIONS, check_sharing


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to change; an option with an empty value is unset."""

    options: Mapping[str, str]
    cpus: int | None = None
    memory_mib: int | None = None
    disk_gib: int | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """What changed, in words, and whether the machine runs without some of it until a restart."""

    changes: list[str]
    waits: bool


class MachineSettings:
    """Reads, checks and changes the settings of machines."""

    def __init__(self, manager: Manager, memory: MemoryDial, disks: MachineDisks) -> None:
        self._manager = manager
        self._memory = memory
        self._disks = disks

    def file(self, name: str) -> Path:
        """Return the place of a machine's file, which is there afterwards."""
        with self._manager.held(name, "setting") as machine:
            if not machine.paths.settings.exists():
                spec, features = machine.record.spec, machine.driver.features
                self._manager.respecify(machine, spec, settings=render(spec, features))
            return machine.paths.settings

    def check(self, name: str, text: str, file: Path) -> list[str]:
        """Return what the text, which ``file`` holds, would change; ``SettingsMistake``."""
        machine = self._manager.open(name)
        return changes(machine.record.spec, _parse(machine, text, file))

    def apply(self, name: str, text: str, file: Path, progress: Progress) -> Applied:
        """Make the text the machine's file and its settings; what can be is so at once, and
        nothing is restarted.

        Raises ``SettingsMistake``, and what moving memory and growing the disk raise; then
        everything is as it was.
        """
        machine = self._manager.open(name)
        return self._change(name, _parse(machine, text, file), progress, text=text)

    def set(self, name: str, wishes: Wishes, progress: Progress) -> Applied:
        """Change single settings, and the same in the machine's file. Memory that cannot be moved
        while the machine runs restarts it, which ``progress`` is told first.

        Raises ``UsageError`` for what the machine does not have and for impossible values, and
        what ``apply`` raises.
        """
        machine = self._manager.open(name)
        _check_wishes(machine, wishes)
        before = machine.record.spec
        merged = {**before.options, **wishes.options}
        wanted = replace(
            before,
            options={key: value for key, value in merged.items() if value},
            cpus=wishes.cpus or before.cpus,
            disk_gib=wishes.disk_gib or before.disk_gib,
        )
        self._manager.check_settings(machine)
        if wishes.memory_mib is None:
            return self._change(name, wanted, progress)
        live = machine.driver.live_memory()
        if live is not None and wishes.memory_mib <= live.most_mib():
            return self._change(name, replace(wanted, memory_mib=wishes.memory_mib), progress)
        with ExitStack() as undo:
            # What waits for a restart is there before the one that memory needs.
            applied = self._change(name, wanted, progress)
            undo.callback(self._respecify, name, replace(before, disk_gib=wanted.disk_gib))
            moved = self._memory.move(name, wishes.memory_mib, progress)
            undo.pop_all()
        after = replace(wanted, memory_mib=wishes.memory_mib)
        return Applied(changes(before, after), waits=applied.waits and not moved.restarted)

    def _change(
        self, name: str, wanted: MachineSpec, progress: Progress, *, text: str | None = None
    ) -> Applied:
        with self._manager.held(name, "setting") as machine:
            before = machine.record.spec
            runs = machine.driver.state() is State.RUNNING
            live = machine.driver.live_memory()
            moves = live is not None and wanted.memory_mib <= live.most_mib()
        with ExitStack() as undo:
            if moves and wanted.memory_mib != before.memory_mib:
                self._memory.move(name, wanted.memory_mib, progress)
                undo.callback(self._memory.move, name, before.memory_mib, progress)
            if wanted.disk_gib != before.disk_gib:
                self._disks.grow(name, wanted.disk_gib, progress)
            with self._manager.held(name, "setting") as machine:
                self._manager.respecify(machine, wanted, settings=text)
                if runs and _sharing(before) != _sharing(wanted):
                    self._manager.renew_agent(machine)
            undo.pop_all()
        waits = runs and _after_restart(before, moves=moves) != _after_restart(wanted, moves=moves)
        return Applied(changes(before, wanted), waits)

    def _respecify(self, name: str, spec: MachineSpec) -> None:
        with self._manager.held(name, "setting") as machine:
            self._manager.respecify(machine, spec)


def _parse(machine: Machine, text: str, file: Path) -> MachineSpec:
    return parse(text, file, machine.record.spec, machine.driver.features)


def _sharing(spec: MachineSpec) -> dict[str, str]:
    return {key: value for key, value in spec.options.items() if key in SHARING_OPTIONS}


def _after_restart(spec: MachineSpec, *, moves: bool) -> MachineSpec:
    """Return a specification without what a running machine follows at once."""
    options = {key: value for key, value in spec.options.items() if key not in SHARING_OPTIONS}
    memory_mib = 0 if moves else spec.memory_mib
    return replace(spec, options=options, disk_gib=0, memory_mib=memory_mib)


def _check_wishes(machine: Machine, wishes: Wishes) -> None:
    name, features = machine.name, machine.driver.features
    for key in wishes.options:
        if key not in ENGINE_OPTIONS | SHARING_OPTIONS:
            raise UsageError(
                f"there is no setting {key!r}",
                hint=f"Settings are: {', '.join(sorted(ENGINE_OPTIONS | SHARING_OPTIONS))}.",
            )
    check_engine_options(wishes.options)
    check_sharing(wishes.options)
    for_engine = not wishes.options.keys() <= SHARING_OPTIONS
    if wishes.options and not features.has_ssh and not for_engine:
        raise UsageError(
            f"the engine of machine {name} is on this computer, and has all its folders",
            hint="There is nothing to set.",
        )
    if for_engine and not features.has_seed:
        raise UsageError(
            f"the engine of machine {name} is not set up by Desk",
            hint="Its settings are in /etc/desk/daemon.json there.",
        )
    if wishes.cpus is not None and not features.sized:
        raise UsageError(
            f"machine {name} is a Linux of its own, whose CPUs Desk does not set",
            hint="`desk update --cpus` limits single containers.",
        )
