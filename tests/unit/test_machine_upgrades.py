"""Other guest images under a machine of the fake driver, which boots none of version 9."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.machine_driver import fake_machines
from tests.unit.test_machine_images import make_image

from desk.errors import ImageError, MachineError, UsageError
from desk.machine import process
from desk.machine.bin import MachineBin
from desk.machine.images import ImageStore, host_architecture
from desk.machine.manager import Manager
from desk.machine.model import MachineSpec
from desk.machine.upgrades import Upgrades
from desk.paths import MachinePaths

OLD, NEW, BAD = (f"{version}-{host_architecture()}" for version in ("1.0.0", "2.0.0", "9.0.0"))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with fake_machines() as manager:
        ImageStore(manager.home).install(str(make_image(tmp_path / "old", version="1.0.0")))
        manager.create(MachineSpec("box", "fake"), facts={"image": OLD})
        yield manager


def facts(manager: Manager) -> dict[str, str]:
    found: dict[str, str] = manager.inspect("box")["facts"]
    return found


def test_a_running_machine_is_restarted_with_it_and_told_first(
    manager: Manager, tmp_path: Path
) -> None:
    manager.start("box")
    before = process.recall(manager.home.machine("box").engine_pid)
    new = make_image(tmp_path / "new", version="2.0.0")
    told: list[str] = []
    done = Upgrades(manager).upgrade("box", str(new), told.append)
    assert (done.before, done.after, done.restarted) == (OLD, NEW, True)
    assert f"Restarting machine box with the guest image {NEW}" in told
    assert process.recall(manager.home.machine("box").engine_pid) not in (None, before)
    assert facts(manager)["image"] == NEW
    again = Upgrades(manager).upgrade("box", "", told.append)
    assert (again.before, again.after, again.restarted) == (NEW, NEW, False)
    back = Upgrades(manager).back("box", told.append)
    assert (back.after, back.restarted) == (OLD, True)
    assert facts(manager)["previous_image"] == NEW


def test_an_image_that_does_not_boot_is_taken_back(manager: Manager, tmp_path: Path) -> None:
    manager.start("box")
    bad = make_image(tmp_path / "bad", version="9.0.0")
    with pytest.raises(MachineError) as failure:
        Upgrades(manager).upgrade("box", str(bad), lambda _sentence: None)
    assert failure.value.text == (
        f"machine box does not come up with the guest image {BAD} and has {OLD} again:"
        " the fake driver does not boot that image"
    )
    assert facts(manager)["image"] == OLD
    assert not facts(manager)["previous_image"]
    assert manager.status("box").engine_version == "fake"


def test_a_disk_that_only_the_failed_image_reads_is_the_one_of_before_again(
    manager: Manager, tmp_path: Path
) -> None:
    manager.start("box")
    paths = manager.home.machine("box")
    paths.data_disk.write_text("mine")
    bad = make_image(tmp_path / "bad", version="9.9.0")
    told: list[str] = []
    with pytest.raises(MachineError, match=f"has {OLD} and its disk of before .* again"):
        Upgrades(manager).upgrade("box", str(bad), told.append)
    assert "Bringing back the disk of machine box from before the upgrade" in told
    assert (facts(manager)["image"], paths.data_disk.read_text()) == (OLD, "mine")
    assert manager.status("box").engine_version == "fake"
    (other,) = MachineBin(manager).contents()
    assert MachinePaths(other.directory).data_disk.read_text() == "migrated"


def test_what_cannot_be_changes_nothing(manager: Manager, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    with pytest.raises(ImageError):
        Upgrades(manager).upgrade("box", str(tmp_path / "broken"), lambda _sentence: None)
    assert facts(manager)["image"] == OLD
    manager.create(MachineSpec("own", "local"))
    for change in (
        lambda: Upgrades(manager).upgrade("own", "", lambda _sentence: None),
        lambda: Upgrades(manager).back("own", lambda _sentence: None),
    ):
        with pytest.raises(UsageError, match="machine own boots no guest image"):
            change()
