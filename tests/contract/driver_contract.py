"""What every machine driver must do, whatever stands behind it.

A subclass per driver gives ``spec`` and, where wanted, ``drivers``; pytest runs all of this for it.
Booting is dear, so the life of a machine is one test.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine_process import until

from desk.agent.pidfile import PidFile
from desk.compose import Desk
from desk.errors import Conflict, DeskError, NotFound, UsageError
from desk.machine.driver import Driver
from desk.machine.drivers.table import DriverContext, DriverTable
from desk.machine.engine_probe import engine_obstacle
from desk.machine.manager import Manager
from desk.machine.model import MachineSpec, State
from desk.paths import Home

_STARTED: list[str] = []
_WATCHING = False


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _WATCHING and event in ("subprocess.Popen", "os.posix_spawn", "os.system", "os.fork"):
        _STARTED.append(f"{event} {arguments[0] if arguments else ''}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def no_process_started() -> Iterator[None]:
    """Fail where the block starts any program."""
    global _WATCHING
    _STARTED.clear()
    _WATCHING = True
    try:
        yield
    finally:
        _WATCHING = False
    assert not _STARTED


class DriverContract:
    """Tests of one driver; each gets a ``DESK_HOME`` of its own that must end empty."""

    stop_grace_s = 30.0

    @pytest.fixture
    def home(self) -> Iterator[Home]:
        # Short: names of sockets may have about a hundred bytes.
        directory = Path(tempfile.mkdtemp(prefix="desk-"))
        home = Home(directory)
        yield home
        manager = Manager(home, self.table())
        for name in manager.names():
            manager.remove(name, force=True)
        shutil.rmtree(directory)

    def table(self) -> DriverTable:
        return DriverTable()

    @pytest.fixture
    def spec(self) -> MachineSpec:
        raise NotImplementedError

    @pytest.fixture
    def bad_spec(self, spec: MachineSpec) -> MachineSpec:
        """A specification that ``create`` must refuse."""
        return MachineSpec(spec.name, spec.driver, options={"no_such_option": "1"})

    def driver(self, home: Home, spec: MachineSpec) -> Driver:
        manager_file = Manager(home, self.table())._store.file(spec.name)
        return self.table().make(spec.driver, DriverContext(home, spec.name, manager_file))

    def end_the_hard_way(self, manager: Manager, name: str) -> None:
        """End the machine ``name``, which runs, without an orderly shutdown."""
        manager.kill(name)

    def test_refused_creation_leaves_nothing(self, home: Home, bad_spec: MachineSpec) -> None:
        manager = Manager(home, self.table())
        with pytest.raises(DeskError) as caught:
            manager.create(bad_spec)
        assert caught.value.text
        assert manager.names() == []
        assert not home.machine(bad_spec.name).directory.exists()

    def test_unknown_machine_is_not_found(self, home: Home) -> None:
        manager = Manager(home, self.table())
        for call in (manager.start, manager.stop, manager.kill, manager.remove, manager.status):
            with pytest.raises(NotFound):
                call("nobody")

    def test_life_of_a_machine(self, home: Home, spec: MachineSpec) -> None:
        manager = Manager(home, self.table())
        said: list[str] = []
        manager.create(spec, said.append)
        paths = home.machine(spec.name)
        assert paths.directory.stat().st_mode & 0o077 == 0
        assert paths.config.stat().st_mode & 0o077 == 0
        with pytest.raises(Conflict):
            manager.create(spec)

        driver = self.driver(home, spec)
        with no_process_started():
            assert driver.state() is State.STOPPED
            assert (driver.endpoint() is not None) == driver.features.has_ssh
        driver.stop(grace_s=1.0)
        driver.kill()
        assert driver.state() is State.STOPPED

        driver.provision(said.append)  # of what is sound nothing is lost
        assert driver.state() is State.STOPPED

        report = manager.start(spec.name, said.append)
        assert said
        assert report.stages
        assert engine_obstacle(paths.engine_socket, timeout_s=10.0) == ""
        with no_process_started():
            assert driver.state() is State.RUNNING
        endpoint = driver.endpoint()
        held_bytes = driver.host_memory_bytes()
        assert held_bytes is None or held_bytes > 0
        assert isinstance(driver.diagnose(), str)
        status = manager.status(spec.name, environ={"DOCKER_HOST": manager.url(spec.name)})
        assert (status.state, status.error, status.active) == (State.RUNNING, "", True)
        assert status.engine_version

        driver.start(said.append)
        assert driver.endpoint() == endpoint
        assert manager.start(spec.name).stages == ()

        if paths.agent_pid.exists():
            self.a_killed_agent_is_replaced(home, spec.name)

        manager.stop(spec.name, grace_s=self.stop_grace_s)
        assert driver.state() is State.STOPPED
        assert engine_obstacle(paths.engine_socket, timeout_s=1.0) != ""
        driver.stop(grace_s=1.0)

        manager.start(spec.name)
        assert driver.endpoint() == endpoint
        assert engine_obstacle(paths.engine_socket, timeout_s=10.0) == ""
        self.end_the_hard_way(manager, spec.name)
        assert driver.state() is State.STOPPED

        manager.remove(spec.name)
        assert manager.names() == []
        assert not paths.directory.exists()
        driver.remove()

    def a_killed_agent_is_replaced(self, home: Home, name: str) -> None:
        """Whatever asks the engine next finds it again, though it may not start machines."""
        pid = int(home.machine(name).agent_pid.read_text())
        os.kill(pid, signal.SIGKILL)
        until(lambda: not PidFile(home.machine(name).agent_pid).is_held())
        with Desk(home).client(name, start=False, progress=lambda _: None) as client:
            assert client.containers.list() == []
        assert PidFile(home.machine(name).agent_pid).holder() not in (None, pid)

    def test_options_are_checked_by_name(self, home: Home, bad_spec: MachineSpec) -> None:
        with pytest.raises(UsageError, match="no_such_option"):
            Manager(home, self.table()).create(bad_spec)
