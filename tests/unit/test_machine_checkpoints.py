"""Machines become again what they were before changed settings and before a reset."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.machine_driver import fake_machines

from desk.errors import Conflict, MachineError, UsageError
from desk.machine.bin import KEPT_S, MachineBin
from desk.machine.checkpoints import Before, Checkpoints
from desk.machine.disks import MachineDisks
from desk.machine.manager import Manager
from desk.machine.memory import MemoryDial
from desk.machine.model import MachineSpec, State
from desk.machine.settings_change import MachineSettings, Wishes
from desk.machine.settings_file import SettingsMistake

NAME = "box"


@pytest.fixture
def manager() -> Iterator[Manager]:
    with fake_machines() as manager:
        manager.create(MachineSpec(NAME, "fake", memory_mib=1024, cpus=2, disk_gib=1))
        yield manager


@pytest.fixture
def settings(manager: Manager) -> MachineSettings:
    return MachineSettings(manager, MemoryDial(manager), MachineDisks(manager))


def silent(_sentence: str) -> None:
    return None


def spec_of(manager: Manager) -> MachineSpec:
    return manager.open(NAME).record.spec


def undo(manager: Manager, settings: MachineSettings) -> None:
    latest = MachineBin(manager).contents()[0]
    Checkpoints(manager).bring_back(latest, settings, silent)


def test_settings_come_back_and_the_undoing_can_be_undone(
    manager: Manager, settings: MachineSettings
) -> None:
    settings.set(NAME, Wishes({}, cpus=3, memory_mib=1280), silent)
    (kept,) = MachineBin(manager).contents()
    assert (kept.name, kept.before) == (NAME, "settings")
    undo(manager, settings)
    now = spec_of(manager)
    assert (now.cpus, now.memory_mib, dict(now.options)) == (2, 1024, {})
    assert len(MachineBin(manager).contents()) == 1
    undo(manager, settings)
    now = spec_of(manager)
    assert (now.cpus, now.memory_mib, dict(now.options)) == (3, 1280, {})


def test_comments_come_back_and_a_disk_stays_as_large_as_it_is(
    manager: Manager, settings: MachineSettings
) -> None:
    file = settings.file(NAME)
    file.write_text("# mine\n" + file.read_text())
    settings.set(NAME, Wishes({}, cpus=4), silent)
    file.write_text(file.read_text().replace("# mine\n", ""))
    undo(manager, settings)
    assert file.read_text().startswith("# mine\n")
    assert spec_of(manager).cpus == 2


def edited(manager: Manager, settings: MachineSettings) -> str:
    """Write more CPUs into the machine's file, by hand; return its text."""
    file = settings.file(NAME)
    text = file.read_text().replace("cpus = 2", "cpus = 5")
    file.write_text(text)
    return text


def test_an_edited_file_follows_what_is_brought_back(
    manager: Manager, settings: MachineSettings
) -> None:
    text = edited(manager, settings)
    settings.apply(NAME, text, manager.home.machine(NAME).settings, silent)
    assert spec_of(manager).cpus == 5
    undo(manager, settings)
    assert spec_of(manager).cpus == 2
    manager.start(NAME)  # which would take up an edited file
    assert spec_of(manager).cpus == 2


def test_what_a_start_takes_up_can_be_undone(manager: Manager, settings: MachineSettings) -> None:
    manager.before_change = Checkpoints(manager).keep_settings
    edited(manager, settings)
    manager.start(NAME)
    assert spec_of(manager).cpus == 5
    undo(manager, settings)
    manager.stop(NAME)
    manager.start(NAME)
    assert spec_of(manager).cpus == 2


def test_memory_that_cannot_be_moved_back_restarts_the_machine_which_is_told_first(
    manager: Manager, settings: MachineSettings
) -> None:
    settings.set(NAME, Wishes({}, memory_mib=1280), silent)
    manager.start(NAME)
    told: list[str] = []
    latest = MachineBin(manager).contents()[0]
    Checkpoints(manager).bring_back(latest, settings, told.append)
    assert any("Restarting machine box" in sentence for sentence in told), told
    assert spec_of(manager).memory_mib == 1024
    assert manager.status(NAME).state is State.RUNNING


def test_what_changes_nothing_or_fails_leaves_no_checkpoint(
    manager: Manager, settings: MachineSettings
) -> None:
    settings.set(NAME, Wishes({}, cpus=2), silent)
    with pytest.raises(UsageError):
        settings.set(NAME, Wishes({"nothing": "x"}), silent)
    text = settings.file(NAME).read_text()
    with pytest.raises(SettingsMistake):
        settings.apply(NAME, text.replace("cpus = 2", "cpus = 0"), Path("f.toml"), silent)
    assert MachineBin(manager).contents() == []


def test_a_reset_empties_the_disk_and_keeps_the_rest(
    manager: Manager, settings: MachineSettings
) -> None:
    paths = manager.home.machine(NAME)
    content = os.urandom(1 << 20)
    paths.data_disk.write_bytes(content)
    record = manager.open(NAME).record
    manager.start(NAME)
    Checkpoints(manager).reset(NAME, silent)
    assert manager.status(NAME).state is State.RUNNING
    assert paths.data_disk.stat().st_size == 1 << 30
    with paths.data_disk.open("rb") as disk:
        assert disk.read(1 << 20) == bytes(1 << 20)
    assert spec_of(manager) == record.spec
    (kept,) = MachineBin(manager).contents()
    assert (kept.before, kept.size_bytes >= 1 << 20) == ("reset", True)

    undo(manager, settings)
    assert manager.status(NAME).state is State.RUNNING
    assert paths.data_disk.read_bytes() == content
    undone = MachineBin(manager).contents()[0]
    assert undone.before == Before.UNDO
    undo(manager, settings)
    assert paths.data_disk.stat().st_size == 1 << 30


def test_a_checkpoint_waits_for_its_machine(manager: Manager, settings: MachineSettings) -> None:
    settings.set(NAME, Wishes({}, cpus=3), silent)
    kept = MachineBin(manager).contents()[0]
    manager.remove(NAME)
    with pytest.raises(Conflict, match="there is no machine box any more"):
        Checkpoints(manager).bring_back(kept, settings, silent)
    assert MachineBin(manager).contents() == [kept]


def test_old_ones_go_and_what_was_not_finished(manager: Manager, settings: MachineSettings) -> None:
    settings.set(NAME, Wishes({}, cpus=3), silent)
    bin_ = MachineBin(manager)
    (kept,) = bin_.contents()
    rest = manager.home.bin / ".unfinished-1"
    rest.mkdir()
    bin_.enforce()
    assert rest.exists()
    os.utime(rest, (0, 0))
    old_ns = time.time_ns() - int((KEPT_S + 60) * 1e9)
    kept.directory.rename(kept.directory.with_name(f"{NAME}@{old_ns}"))
    bin_.enforce()
    assert (bin_.contents(), rest.exists()) == ([], False)


def test_a_full_disk_is_named_and_nothing_is_changed(
    manager: Manager, settings: MachineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("desk.machine.checkpoints.write_whole", full)
    with pytest.raises(MachineError, match=r"machine box as it is cannot be kept in .*: No space"):
        settings.set(NAME, Wishes({}, cpus=3), silent)
    assert spec_of(manager).cpus == 2
    assert list(manager.home.bin.iterdir()) == []
