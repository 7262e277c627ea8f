"""Changes a machine's settings, by its file or by single wishes: wholly or not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from desk.errors import UsageError
from desk.machine.checkpoints import Before, Checkpoints
from desk.machine.coming_up import Machine
from desk.machine.disks import MachineDisks
from desk.machine.driver import Progress
from desk.machine.engine_settings import ENGINE_OPTIONS, check_engine_options
from desk.machine.manager import Manager
from desk.machine.memory import MemoryDial
from desk.machine.model import MachineSpec, State
from desk.machine.power_options import POWER_OPTIONS, check_power
from desk.machine.settings_file import changes, parse, read_text, render, says
from desk.machine.sharing import DEVICE_OPTIONS, SHARING_OPTIONS, check_sharing, wants_devices


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to change; an option with an empty value is unset."""

    options: Mapping[str, str]
    cpus: int | None = None
    memory_mib: int | None = None
    disk_gib: int | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """What changed, and whether the machine runs without some of it until a restart."""

    before: MachineSpec
    after: MachineSpec
    waits: bool

    @property
    def changes(self) -> list[str]:
        """What changed, in words."""
        return changes(self.before, self.after)

    def undone(self, spec: MachineSpec) -> MachineSpec:
        """Return a specification without what changed; its disk and its memory stay."""
        before, after, options = self.before.options, self.after.options, dict(spec.options)
        for key in before.keys() | after.keys():
            if before.get(key) != after.get(key):
                options[key] = before.get(key, "")
        cpus = spec.cpus if self.before.cpus == self.after.cpus else self.before.cpus
        return replace(spec, options=_set(options), cpus=cpus)


class MachineSettings:
    """Reads, checks and changes the settings of machines."""

    def __init__(self, manager: Manager, memory: MemoryDial, disks: MachineDisks) -> None:
        self._manager = manager
        self._memory = memory
        self._disks = disks
        self._checkpoints = Checkpoints(manager)

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
        everything is as it was. ``desk undo`` brings the settings of before back.
        """
        features = self._manager.open(name).driver.features
        with self._checkpoint(name):
            return self._change(
                name, lambda spec: parse(text, file, spec, features), progress, text=text
            )

    def become(self, name: str, wanted: MachineSpec, text: str | None, progress: Progress) -> None:
        """Give a machine other settings as a whole, with their file; its disk does not shrink.

        Raises what ``set`` raises; then everything is as it was.
        """
        machine = self._manager.open(name)
        live, memory_mib = machine.driver.live_memory(), wanted.memory_mib
        moves = memory_mib == machine.record.spec.memory_mib or (
            live is not None and memory_mib <= live.most_mib()
        )

        def wish(spec: MachineSpec) -> MachineSpec:
            size_mib = memory_mib if moves else spec.memory_mib
            disk_gib = max(spec.disk_gib, wanted.disk_gib)
            return replace(wanted, name=name, memory_mib=size_mib, disk_gib=disk_gib)

        with self._checkpoint(name):
            self._change(name, wish, progress)
            if not moves:
                self._memory.move(name, memory_mib, progress)
            with self._manager.held(name, "setting") as machine:
                now, file = machine.record.spec, machine.paths.settings
                # The file may have been edited before the change, and be of a smaller disk.
                if text is not None and says(text, file, now, machine.driver.features):
                    self._manager.respecify(machine, now, settings=text)

    @contextmanager
    def _checkpoint(self, name: str) -> Iterator[None]:
        """Keep the settings of before where the body changes them."""
        with self._manager.held(name, "setting") as machine:
            kept = self._checkpoints.take(machine, Before.SETTINGS)
        changed = False
        try:
            yield
            changed = self._manager.open(name).record.spec != machine.record.spec
        finally:
            if not changed:
                self._checkpoints.forget(kept)

    def set(self, name: str, wishes: Wishes, progress: Progress) -> Applied:
        """Change single settings, and the same in the machine's file. Memory that cannot be moved
        while the machine runs restarts it, which ``progress`` is told first.

        Raises ``UsageError`` for what the machine does not have and for impossible values, and
        what ``apply`` raises.
        """
        _check_wishes(self._manager.open(name), wishes)
        with self._checkpoint(name):
            return self._set(name, wishes, progress)

    def _set(self, name: str, wishes: Wishes, progress: Progress) -> Applied:
        machine = self._manager.open(name)
        self._manager.check_settings(machine)
        memory_mib = wishes.memory_mib
        live = machine.driver.live_memory()
        if memory_mib is None or (live is not None and memory_mib <= live.most_mib()):
            return self._change(name, lambda spec: _with(spec, wishes), progress)
        with ExitStack() as undo:
            # What waits for a restart is there before the one that memory needs.
            others = replace(wishes, memory_mib=None)
            applied = self._change(name, lambda spec: _with(spec, others), progress)
            undo.callback(self._put_back, name, applied)
            moved = self._memory.move(name, memory_mib, progress)
            undo.pop_all()
        after = replace(applied.after, memory_mib=memory_mib)
        waits = applied.waits and not moved.restarted
        return Applied(applied.before, after, waits)

    def _change(
        self,
        name: str,
        wish: Callable[[MachineSpec], MachineSpec],
        progress: Progress,
        *,
        text: str | None = None,
    ) -> Applied:
        with self._manager.held(name, "setting") as machine:
            before = machine.record.spec
            wanted = wish(before)
            file = machine.paths.settings
            old_text = read_text(file) if text is not None and file.exists() else None
            runs = machine.driver.state() is State.RUNNING
            live = machine.driver.live_memory()
            moves = live is not None and wanted.memory_mib <= live.most_mib()
            sharing = SHARING_OPTIONS | DEVICE_OPTIONS
            if _some(before, sharing) != _some(wanted, sharing):
                # A machine that is ended for a restart must not stay so.
                machine.driver.check_sharing(wanted)
        applied = Applied(
            before,
            wanted,
            waits=runs
            and _after_restart(before, moves=moves) != _after_restart(wanted, moves=moves),
        )
        with ExitStack() as undo:
            undo.callback(self._put_back, name, applied, old_text)
            if moves and wanted.memory_mib != before.memory_mib:
                self._memory.move(name, wanted.memory_mib, progress, settings=text)
                undo.callback(self._memory.move, name, before.memory_mib, progress)
            if wanted.disk_gib != before.disk_gib:
                self._disks.grow(name, wanted.disk_gib, progress, settings=text)
            with self._manager.held(name, "setting") as machine:
                now = machine.record.spec  # what another command set meanwhile stays
                spec = wish(now)
                spec = replace(spec, disk_gib=max(spec.disk_gib, now.disk_gib))
                self._manager.respecify(machine, spec, settings=text)
                if runs and _some(before, SHARING_OPTIONS) != _some(wanted, SHARING_OPTIONS):
                    self._manager.renew_agent(machine)
                elif runs and _some(before, POWER_OPTIONS) != _some(wanted, POWER_OPTIONS):
                    self._manager.renew_power(machine)
            undo.pop_all()
        return applied

    def _put_back(self, name: str, applied: Applied, text: str | None = None) -> None:
        """Undo a change of what is only written down; a disk that has grown stays so."""
        with self._manager.held(name, "setting") as machine:
            now = machine.record.spec
            if now.disk_gib != applied.before.disk_gib:
                text = None  # that file is of a smaller disk
            spec = applied.undone(now)
            if spec != now or (text is not None and text != read_text(machine.paths.settings)):
                self._manager.respecify(machine, spec, settings=text)


def _parse(machine: Machine, text: str, file: Path) -> MachineSpec:
    return parse(text, file, machine.record.spec, machine.driver.features)


def _with(spec: MachineSpec, wishes: Wishes) -> MachineSpec:
    return replace(
        spec,
        options=_set({**spec.options, **wishes.options}),
        cpus=wishes.cpus or spec.cpus,
        memory_mib=wishes.memory_mib or spec.memory_mib,
        disk_gib=wishes.disk_gib or spec.disk_gib,
    )


def _set(options: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in options.items() if value}


def _some(spec: MachineSpec, names: Collection[str]) -> dict[str, str]:
    return {key: value for key, value in spec.options.items() if key in names}


def _after_restart(spec: MachineSpec, *, moves: bool) -> MachineSpec:
    """Return a specification without what a running machine follows at once."""
    options = _some(spec, spec.options.keys() - SHARING_OPTIONS - POWER_OPTIONS)
    memory_mib = 0 if moves else spec.memory_mib
    return replace(spec, options=options, disk_gib=0, memory_mib=memory_mib)


def _check_wishes(machine: Machine, wishes: Wishes) -> None:
    name, features = machine.name, machine.driver.features
    known = ENGINE_OPTIONS | SHARING_OPTIONS | DEVICE_OPTIONS | POWER_OPTIONS
    for key in wishes.options:
        if key not in known:
            raise UsageError(
                f"there is no setting {key!r}", hint=f"Settings are: {', '.join(sorted(known))}."
            )
    check_engine_options(wishes.options)
    check_sharing(wishes.options)
    check_power(wishes.options)
    if wishes.options.keys() & POWER_OPTIONS and not features.shares_power:
        raise UsageError(
            f"machine {name} is a Linux of its own, whose power Desk does not follow",
            hint="`desk update --cpus` and `desk pause` work on single containers.",
        )
    for_engine = bool(wishes.options.keys() & ENGINE_OPTIONS)
    if wishes.options.keys() & SHARING_OPTIONS and not features.has_ssh and not for_engine:
        raise UsageError(
            f"the engine of machine {name} is on this computer, and has all its folders",
            hint="There is nothing to set.",
        )
    if wants_devices(wishes.options) and not features.folder_devices:
        raise UsageError(
            f"machine {name} cannot have folders by virtiofs, which is for machines of the drivers"
            " qemu and vagrant",
            hint="Its folders are shared by SFTP; there is nothing to set.",
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
