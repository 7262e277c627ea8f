"""The manager with the fake driver: creating, failing, waiting, and what is left afterwards."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.machine_driver import FakeDriver, fake_machines

from desk.errors import Conflict, DeskError, DriverError, MachineError, NotFound, UsageError
from desk.machine import process
from desk.machine.driver import Driver
from desk.machine.drivers.local import LocalDriver
from desk.machine.drivers.qemu import QemuDriver
from desk.machine.drivers.ssh_host import SshHostDriver
from desk.machine.drivers.table import DriverTable
from desk.machine.drivers.vagrant import VagrantDriver
from desk.machine.manager import Manager
from desk.machine.model import MachineSpec, State
from desk.machine.openssh import ssh_config, ssh_options
from desk.machine.provisioning import provision
from desk.paths import Home
from desk.ssh.endpoint import Endpoint


@pytest.fixture
def manager() -> Iterator[Manager]:
    with fake_machines() as manager:
        yield manager


def spec(name: str = "box", **options: str) -> MachineSpec:
    return MachineSpec(name, "fake", options=options)


def left(manager: Manager) -> list[str]:
    return sorted(e.name for e in manager.home.machines.iterdir() if not e.name.endswith(".lock"))


def test_failed_creation_leaves_nothing_and_can_be_repeated(manager: Manager) -> None:
    with pytest.raises(DriverError, match="told to fail"):
        manager.create(spec(fail="create"))
    assert left(manager) == []
    manager.create(spec())
    assert manager.inspect("box")["facts"] == {"colour": "blue"}


def test_debris_of_a_killed_creation_is_no_machine(manager: Manager) -> None:
    manager.create(spec("other"))
    paths = manager.home.machine("box")
    paths.directory.mkdir()
    paths.private_key.write_text("half a key")
    assert manager.names() == ["other"]
    manager.create(spec())
    assert not paths.private_key.exists()


def test_two_creations_at_once_make_one_machine(manager: Manager) -> None:
    outcomes: list[str] = []

    def create() -> None:
        try:
            manager.create(spec())
            outcomes.append("made")
        except Conflict as error:
            outcomes.append(error.text)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["machine box exists already"] * 3 + ["made"]
    assert manager.status("box").state is State.STOPPED


def test_creation_while_another_command_holds_the_lock(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("desk.machine.manager._LOCK_WAIT_S", 0.1)
    with (
        manager._store.locked("box", "creating", wait_s=0),
        pytest.raises(Conflict, match="another command is working on machine box"),
    ):
        manager.create(spec())


@pytest.mark.parametrize("how", ["start", "boot"])
def test_failed_start_leaves_a_stopped_machine(manager: Manager, how: str) -> None:
    manager.create(spec(fail=how))
    with pytest.raises(MachineError) as caught:
        manager.start("box", deadline_s=5)
    if how == "boot":
        assert "machine box is not ready: it is stopped again; booting" in caught.value.text
    assert manager.status("box").state is State.STOPPED


def test_start_that_takes_too_long_says_what_is_missing(manager: Manager) -> None:
    manager.create(spec(fail="boot"))
    with pytest.raises(MachineError, match="cannot reach the engine"):
        manager.start("box", deadline_s=0.1)
    assert manager.status("box").state is State.STOPPED


class ShyDriver(FakeDriver):
    """Asking for its state costs the machine something."""

    features = dataclasses.replace(FakeDriver.features, state_interval_s=3600.0)
    asked = 0

    def state(self) -> State:
        type(self).asked += 1
        return super().state()


def test_driver_that_is_disturbed_by_questions_is_asked_rarely(manager: Manager) -> None:
    shy = Manager(manager.home, DriverTable({"fake": ShyDriver}))
    shy.create(spec(fail="boot"))
    ShyDriver.asked = 0
    rounds: list[float] = []
    engine_obstacle = shy._obstacle

    def obstacle(machine: Any, timeout_s: float) -> str:
        rounds.append(timeout_s)
        return engine_obstacle(machine, timeout_s)

    shy._obstacle = obstacle  # type: ignore[method-assign]
    with pytest.raises(MachineError, match="cannot reach the engine"):
        shy.start("box", deadline_s=1.5)
    assert len(rounds) > 5
    # By the two sides of the lock, by the driver's own start, and once while waiting.
    assert ShyDriver.asked <= 4


def test_start_can_be_cancelled(manager: Manager) -> None:
    manager.create(spec())
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(MachineError, match="cancelled"):
        manager.start("box", cancelled=cancelled)
    assert manager.status("box").state is State.STOPPED


def test_two_starts_at_once_start_one_machine(manager: Manager) -> None:
    manager.create(spec())
    threads = [threading.Thread(target=manager.start, args=("box",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = process.last_lines(manager.home.machine("box").engine_log, 10)
    assert said == []
    assert manager.status("box").state is State.RUNNING
    manager.stop("box")


def test_restart_reports_its_stages(manager: Manager) -> None:
    manager.create(spec())
    report = manager.restart("box")
    report = manager.restart("box")
    assert [name for name, _seconds in report.stages] == [
        "containers' end",
        "agent's end",
        "power off",
        "power on",
        "the engine",
    ]
    assert report.total_s == sum(seconds for _name, seconds in report.stages)
    manager.stop("box")
    manager.stop("box")


def test_a_driver_without_a_state_on_disk_refuses_to_park(manager: Manager) -> None:
    manager.create(spec())
    manager.start("box")
    with pytest.raises(UsageError, match="machine box cannot be parked: its driver fake"):
        manager.park("box")
    assert manager.status("box").state is State.RUNNING
    manager.stop("box")


def test_status_while_another_command_works(manager: Manager) -> None:
    manager.create(spec())
    with manager._store.locked("box", "starting", wait_s=0):
        assert manager.status("box").state is State.STARTING
        manager._store.now("box", "stopping")
        assert manager.status("box").state is State.STOPPING
    assert manager.status("box").state is State.STOPPED


def test_running_machine_with_a_silent_engine_says_so(manager: Manager) -> None:
    manager.create(spec())
    manager.start("box")
    manager.home.machine("box").engine_socket.unlink()
    status = manager.status("box", timeout_s=1)
    assert status.state is State.RUNNING
    assert "cannot reach the engine" in status.error
    manager.kill("box")
    assert manager.status("box").state is State.STOPPED


def test_list_shows_damaged_machines_too(manager: Manager) -> None:
    manager.create(spec("good"))
    manager.create(spec("bad"))
    manager.home.machine("bad").config.write_text("{")
    manager.create(spec("odd"))
    config = manager.home.machine("odd").config
    config.write_text(json.dumps({**json.loads(config.read_text()), "driver": "cloud"}))
    statuses = {status.name: status for status in manager.list()}
    assert statuses["good"].state is State.STOPPED
    assert statuses["bad"].state is State.ERROR
    assert "machine.json is damaged" in statuses["bad"].error
    assert "'cloud' is no machine driver" in statuses["odd"].error
    with pytest.raises(MachineError, match="damaged"):
        manager.remove("bad")
    manager.remove("bad", force=True)
    assert manager.names() == ["good", "odd"]


def test_active_machine_is_the_one_docker_host_names(manager: Manager) -> None:
    manager.create(spec("one"))
    manager.create(spec("two"))
    url = manager.url("two")
    assert url == f"unix://{manager.home.machine('two').engine_socket}"
    assert manager.active({"DOCKER_HOST": url}) == "two"
    assert manager.active({}) == ""
    assert [s.active for s in manager.list(environ={"DOCKER_HOST": url})] == [False, True]


def test_bad_names_and_drivers_are_refused(manager: Manager) -> None:
    with pytest.raises(UsageError):
        manager.create(spec("../evil"))
    with pytest.raises(UsageError, match="no machine driver"):
        manager.create(MachineSpec("box", "cloud"))
    with pytest.raises(UsageError):
        manager.status("a/b")
    with pytest.raises(NotFound):
        manager.status("nobody")


def test_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    deep = Manager(Home(tmp_path / ("x" * 60)), DriverTable({"fake": FakeDriver}))
    with pytest.raises(MachineError, match="the system allows") as caught:
        deep.create(MachineSpec("n" * 40, "fake"))
    assert "DESK_HOME" in caught.value.hint
    assert not (tmp_path / ("x" * 60)).exists()


def test_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    manager = Manager(Home(tmp_path / "file" / "home"), DriverTable({"fake": FakeDriver}))
    with pytest.raises(DeskError, match="Not a directory") as caught:
        manager.create(spec())
    assert "DESK_HOME" in caught.value.hint


def test_machine_without_ssh_says_so(manager: Manager) -> None:
    manager.create(spec())
    with pytest.raises(MachineError, match="has no SSH"):
        manager.endpoint("box")


def test_openssh_gets_desks_key_and_host_key_only(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", 2222, "root", tmp_path / "key", tmp_path / "known hosts")
    options = ssh_options(endpoint)
    assert "StrictHostKeyChecking=yes" in options
    assert f'UserKnownHostsFile="{tmp_path}/known hosts"' in options
    assert "IdentitiesOnly=yes" in options
    assert options[options.index("-i") + 1] == str(endpoint.private_key)
    lines = ssh_config({"desk-box": endpoint}).splitlines()
    assert lines[0] == "Host desk-box"
    assert f'  UserKnownHostsFile "{tmp_path}/known hosts"' in lines
    assert "  StrictHostKeyChecking yes" in lines


def test_provisioning_restarts_what_runs_and_says_so_first(manager: Manager) -> None:
    manager.create(spec())
    told: list[str] = []
    assert provision(manager, "box", told.append) is False
    assert manager.inspect("box")["facts"] == {"colour": "green"}
    manager.start("box")
    before = process.recall(manager.home.machine("box").engine_pid)
    assert provision(manager, "box", told.append) is True
    assert told[1:3] == [
        "Making the fake machine anew",
        "Restarting machine box, which has it from its start",
    ]
    after = process.recall(manager.home.machine("box").engine_pid)
    assert after is not None
    assert after != before


@pytest.mark.parametrize("driver", [QemuDriver, SshHostDriver, VagrantDriver, LocalDriver])
def test_what_is_known_of_a_machine_can_be_printed_as_json(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, driver: type[Driver]
) -> None:
    manager.create(spec())
    monkeypatch.setattr(FakeDriver, "features", driver.features)
    found = json.loads(json.dumps(manager.inspect("box")))
    assert set(found["features"]["options"]) == driver.features.options
    assert set(found["features"]["needed_options"]) == driver.features.needed_options
