"""The memory dial with the fake driver: what is refused, what restarts, what is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.machine_driver import fake_machines

from desk.cli.commands.machine_memory import history_rows, usage_row
from desk.errors import Conflict, DriverError, MachineNotRunning, NotFound, UsageError
from desk.machine import process
from desk.machine.disks import MachineDisks
from desk.machine.drivers.qemu_memory import host_memory_mib
from desk.machine.manager import Manager
from desk.machine.memory import MemoryDial, described
from desk.machine.memory_advice import Verdict
from desk.machine.model import MachineSpec
from desk.machine.settings_change import MachineSettings, Wishes


@pytest.fixture
def manager() -> Iterator[Manager]:
    with fake_machines() as manager:
        manager.create(MachineSpec("box", "fake"))
        yield manager


def silent(_sentence: str) -> None:
    return None


def settings(manager: Manager) -> MachineSettings:
    return MachineSettings(manager, MemoryDial(manager), MachineDisks(manager))


@pytest.fixture
def dial(manager: Manager) -> MemoryDial:
    return MemoryDial(manager)


def test_a_stopped_machine_has_it_from_its_next_start(manager: Manager, dial: MemoryDial) -> None:
    moved = dial.move("box", 512, lambda _sentence: None)
    assert (moved.live, moved.restarted) == (False, False)
    assert manager.inspect("box")["memory_mib"] == 512
    with pytest.raises(MachineNotRunning, match="machine box is stopped"):
        dial.usage("box")


def test_a_driver_that_cannot_move_it_restarts_and_says_so_first(
    manager: Manager, dial: MemoryDial
) -> None:
    manager.start("box")
    before = process.recall(manager.home.machine("box").engine_pid)
    told: list[str] = []
    moved = dial.move("box", 4096, told.append)
    assert (moved.live, moved.restarted) == (False, True)
    assert told[0] == "Restarting machine box, which cannot have 4096 MiB without that"
    after = process.recall(manager.home.machine("box").engine_pid)
    assert after is not None
    assert after != before
    assert manager.inspect("box")["memory_mib"] == 4096


def test_a_machine_that_does_not_start_with_it_runs_as_before(
    manager: Manager, dial: MemoryDial
) -> None:
    manager.start("box")
    told: list[str] = []
    with pytest.raises(DriverError, match="has not so much memory"):
        dial.move("box", 2 << 20, told.append)
    assert "Starting machine box again with 2048 MiB as before" in told
    assert manager.inspect("box")["memory_mib"] == 2048
    assert manager.status("box").engine_version == "fake"


def test_less_than_containers_hold_is_refused_with_their_names(
    manager: Manager, dial: MemoryDial
) -> None:
    manager.start("box")
    before = process.recall(manager.home.machine("box").engine_pid)
    with pytest.raises(Conflict) as refusal:
        dial.move("box", 1000, lambda _sentence: None)
    # 2048 - 1980 of the kernel, 900 used, and 48 of headroom
    assert refusal.value.text == (
        "machine box needs 1016 MiB for what is running: big holds 600 MiB, small holds 100 MiB,"
        " the machine itself uses 200 MiB"
    )
    assert "1016 MiB or more" in refusal.value.hint
    assert manager.inspect("box")["memory_mib"] == 2048
    assert process.recall(manager.home.machine("box").engine_pid) == before


def test_impossible_sizes_and_machines_are_refused(manager: Manager, dial: MemoryDial) -> None:
    with pytest.raises(UsageError, match="64 MiB of memory are too few"):
        dial.move("box", 64, lambda _sentence: None)
    with pytest.raises(NotFound):
        dial.move("none", 512, lambda _sentence: None)
    manager.create(MachineSpec("own", "local"))
    try:
        with pytest.raises(UsageError, match="whose memory Desk does not set"):
            dial.move("own", 512, lambda _sentence: None)
        with pytest.raises(UsageError, match="whose CPUs Desk does not set"):
            settings(manager).set("own", Wishes({}, cpus=2), silent)
    finally:
        manager.remove("own", force=True)


def test_cpus_are_there_from_the_next_start(manager: Manager) -> None:
    assert settings(manager).set("box", Wishes({}, cpus=3), silent).waits is False
    manager.start("box")
    assert settings(manager).set("box", Wishes({}, cpus=4), silent).waits is True
    assert manager.inspect("box")["cpus"] == 4


def test_the_table_names_who_holds_it(manager: Manager, dial: MemoryDial) -> None:
    manager.start("box")
    usage = dial.usage("box")
    row = usage_row(usage)
    assert row["Memory"] == "2GiB"
    assert row["Used"] == "900MiB"
    assert row["Holders"] == "big 600MiB, small 100MiB"
    assert row["HostMemory"] == ""  # the fake driver cannot tell
    assert row["Pressure"] == "0.50%"
    assert described(usage).startswith("big holds 600 MiB")


def test_the_history_has_a_line_a_minute_with_the_largest_use(
    manager: Manager, dial: MemoryDial
) -> None:
    manager.start("box")
    rows = list(history_rows(dial.usage("box").history))
    assert [row["Used"] for row in rows] == ["900MiB", "800MiB"]


def test_nothing_is_set_aside_where_memory_is_never_promised_twice(tmp_path: Path) -> None:
    file = tmp_path / "overcommit_memory"
    assert host_memory_mib(file) > 256  # a kernel without that file
    file.write_text("0\n")
    assert host_memory_mib(file) > 256
    file.write_text("2\n")
    assert host_memory_mib(file) == 0


def test_advice_is_of_what_the_engine_observed(manager: Manager, dial: MemoryDial) -> None:
    with pytest.raises(MachineNotRunning):
        dial.advice("box")
    manager.start("box")
    advice = dial.advice("box")
    assert [each.name for each in advice.together] == ["big", "small"]
    # 2048 - 1980 of the kernel, 900 - 700 of the engine and the rest, 900 and 120 at the peaks
    assert advice.needed_mib == 1288
    assert advice.advised_mib == 1792  # and a quarter of the peaks, in steps of 256
    assert advice.verdict is Verdict.RIGHT
    assert advice.sized
    dial.move("box", 1300, silent)
    assert dial.advice("box").verdict is Verdict.RAISE
