"""A driver whose machine is one small process: ``tests/fakes/engine_server.py``.

The option ``fail`` makes it misbehave: ``create``, ``start`` or ``boot``.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from desk.agent.spec import EngineAccess
from desk.errors import DriverError
from desk.machine import process
from desk.machine.driver import Features, Progress
from desk.machine.drivers.options import check_known
from desk.machine.drivers.table import DriverContext, DriverTable
from desk.machine.manager import Manager
from desk.machine.model import MachineSpec, State
from desk.paths import Home

SERVER = Path(__file__).with_name("engine_server.py")
MOST_MIB = 1 << 20
BAD_VERSION = "9."
MIGRATING_VERSION = "9.9."
"""Bad, and no other image boots with the disk that it leaves."""


class FakeDisk:
    def __init__(self, file: Path) -> None:
        self._file = file

    def grow(self, size_bytes: int) -> None:
        with self._file.open("ab") as disk:
            disk.truncate(size_bytes)


class FakeDriver:
    features = Features(
        needs_guest_image=False,
        has_ssh=False,
        can_power=True,
        has_console=False,
        live_memory=False,
        portable=True,
        options=frozenset({"fail"}),
    )

    def __init__(self, context: DriverContext) -> None:
        self._paths = context.paths
        self._record = context.record

    def create(self, spec: MachineSpec, progress: Progress) -> None:
        check_known(spec, {"fail"})
        progress("Making a fake machine")
        self._record.update({"colour": "blue"})
        self._paths.data_disk.write_text("data")
        if spec.options.get("fail") == "create":
            raise DriverError("the fake driver was told to fail", hint="Tell it otherwise.")

    def provision(self, progress: Progress) -> None:
        progress("Making the fake machine anew")
        self._record.update({"colour": "green"})

    def start(self, progress: Progress) -> None:
        if self.state() is State.RUNNING:
            return
        failure = self._record.read().spec.options.get("fail")
        if failure == "start":
            raise DriverError("the fake driver was told not to start")
        if self._record.get("image").startswith(MIGRATING_VERSION):
            self._paths.data_disk.write_text("migrated")
        if self._record.get("image").startswith(BAD_VERSION):
            raise DriverError("the fake driver does not boot that image")
        if self._paths.data_disk.read_bytes() == b"migrated":
            raise DriverError("the fake driver's engine does not read that disk")
        if self._record.read().spec.memory_mib > MOST_MIB:
            raise DriverError("the fake driver has not so much memory")
        program = [str(SERVER), str(self._paths.engine_socket)]
        if failure == "boot":
            program = ["-c", "import time; print('booting'); time.sleep(0.3)"]
        progress("Starting a fake machine")
        started = process.spawn_detached([sys.executable, *program], log=self._paths.engine_log)
        process.remember(started, self._paths.engine_pid)

    def stop(self, *, grace_s: float) -> None:
        running = process.recall(self._paths.engine_pid)
        if running is not None:
            running.end(grace_s=grace_s)
        self._paths.engine_pid.unlink(missing_ok=True)

    def kill(self) -> None:
        running = process.recall(self._paths.engine_pid)
        if running is not None:
            running.kill()
        self._paths.engine_pid.unlink(missing_ok=True)

    def freeze(self) -> None:
        running = process.recall(self._paths.engine_pid)
        if running is not None:
            running.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        running = process.recall(self._paths.engine_pid)
        if running is not None:
            running.signal(signal.SIGCONT)

    def park(self) -> None:
        return

    def check_sharing(self, spec: MachineSpec) -> None:
        return

    def remove(self) -> None:
        self.kill()

    def state(self) -> State:
        running = process.recall(self._paths.engine_pid)
        if running is None:
            return State.STOPPED
        return State.PAUSED if running.suspended else State.RUNNING

    def endpoint(self) -> None:
        return None

    def engine_access(self) -> EngineAccess:
        return EngineAccess()

    def host_memory_bytes(self) -> int | None:
        running = process.recall(self._paths.engine_pid)
        return None if running is None else running.resident_bytes()

    def live_memory(self) -> None:
        return None

    def data_disk(self) -> FakeDisk:
        return FakeDisk(self._paths.data_disk)

    def diagnose(self) -> str:
        return " ".join(process.last_lines(self._paths.engine_log))


@contextlib.contextmanager
def fake_machines() -> Iterator[Manager]:
    """A manager whose machines have the driver ``fake``, in a home of its own; its path is short,
    for the sockets below it."""
    directory = Path(tempfile.mkdtemp(prefix="desk-"))
    manager = Manager(Home(directory), DriverTable({"fake": FakeDriver}))
    try:
        yield manager
    finally:
        for name in manager.names():
            manager.remove(name, force=True)
        shutil.rmtree(directory)
