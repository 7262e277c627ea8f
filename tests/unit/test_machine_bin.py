"""Removed machines come back with their disks, until they are too old or the disk is short."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.machine_driver import fake_machines

from desk.errors import Conflict, NotFound
from desk.machine.bin import MachineBin
from desk.machine.manager import Manager
from desk.machine.model import MachineSpec, State

GIB = 1 << 30


def silent(_sentence: str) -> None:
    return None


@pytest.fixture
def manager() -> Iterator[Manager]:
    with fake_machines() as manager:
        manager.create(MachineSpec("box", "fake", memory_mib=512, cpus=3))
        manager.home.machine("box").data_disk.write_bytes(os.urandom(1 << 20))
        yield manager


def test_a_running_machine_is_switched_off_and_comes_back_whole(manager: Manager) -> None:
    bin_ = MachineBin(manager)
    disk = manager.home.machine("box").data_disk.read_bytes()
    manager.start("box")
    before = time.time_ns()
    assert bin_.take("box", silent)
    assert manager.names() == []
    with pytest.raises(NotFound):
        manager.status("box")
    (binned,) = bin_.contents()
    assert binned.name == "box"
    assert before < binned.removed_ns < time.time_ns()
    assert binned.size_bytes >= 1 << 20

    manager.create(MachineSpec("box", "fake"))
    with pytest.raises(Conflict, match="there is a machine box now"):
        bin_.put_back(binned)
    manager.remove("box")
    bin_.put_back(binned)
    assert bin_.contents() == []
    assert manager.home.machine("box").data_disk.read_bytes() == disk
    assert manager.status("box").state is State.STOPPED
    assert manager.open("box").record.spec.cpus == 3
    manager.start("box")
    manager.stop("box")


def test_the_latest_of_a_name_is_the_first(manager: Manager) -> None:
    bin_ = MachineBin(manager)
    assert bin_.take("box", silent)
    manager.create(MachineSpec("box", "fake", cpus=7))
    assert bin_.take("box", silent)
    first, second = bin_.contents()
    assert first.removed_ns > second.removed_ns
    bin_.put_back(first)
    assert manager.open("box").record.spec.cpus == 7
    size_bytes = second.size_bytes
    assert bin_.empty() == size_bytes
    assert bin_.contents() == []
    assert manager.names() == ["box"]


def test_age_and_a_short_disk_empty_it(manager: Manager) -> None:
    def usage(free: int) -> MachineBin:
        return MachineBin(manager, lambda _place: (100 * GIB, 100 * GIB - free, free))

    assert usage(50 * GIB).take("box", silent)
    (binned,) = usage(0).contents()
    usage(50 * GIB).enforce()
    assert len(usage(0).contents()) == 1
    old = binned.directory.with_name(f"box@{time.time_ns() - 25 * 3600 * 10**9}")
    binned.directory.rename(old)
    usage(50 * GIB).enforce()
    assert list(manager.home.bin.iterdir()) == []

    manager.create(MachineSpec("box", "fake"))
    assert usage(4 * GIB).take("box", silent)
    assert list(manager.home.bin.iterdir()) == []
    assert manager.names() == []


def test_the_oldest_go_where_all_together_are_too_large(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_ = MachineBin(manager)
    for name in ("second", "third"):
        manager.create(MachineSpec(name, "fake"))
        manager.home.machine(name).data_disk.write_bytes(os.urandom(1 << 20))
    monkeypatch.setattr("desk.machine.bin.MOST_BYTES", (5 << 20) // 2)
    for name in ("box", "second", "third"):
        assert bin_.take(name, silent)
    assert [binned.name for binned in bin_.contents()] == ["third", "second"]
    monkeypatch.setattr("desk.machine.bin.MOST_BYTES", 1)
    bin_.enforce()
    assert [binned.name for binned in bin_.contents()] == ["third"]


def test_what_is_half_deleted_is_no_machine_and_goes_later(manager: Manager) -> None:
    bin_ = MachineBin(manager)
    assert bin_.take("box", silent)
    (binned,) = bin_.contents()
    binned.directory.rename(binned.directory.with_name(f".{binned.id}"))
    assert bin_.contents() == []
    bin_.enforce()
    assert list(manager.home.bin.iterdir()) == []


def test_what_does_not_belong_there_is_left_alone(manager: Manager) -> None:
    manager.home.bin.mkdir()
    other: Path = manager.home.bin / "notes"
    other.write_text("mine")
    bin_ = MachineBin(manager)
    bin_.enforce()
    assert (bin_.contents(), bin_.empty(), other.read_text()) == ([], 0, "mine")
