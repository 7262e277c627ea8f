"""Where an engine runs that tests are shared for: this machine, and a guest as users have it."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from desk.machine.manager import Manager
from desk.machine.model import MachineSpec
from desk.paths import Home
from desk.ssh.session import Session
from tests.cgroup_layouts import LAYOUTS, Layout, Seen
from tests.engine_process import (
    Api,
    ApiError,
    EngineProcess,
    Hijacked,
    frames,
    running_engine,
    until,
)

ENGINE_DEADLINE_S = 180.0
"""On a busy computer an engine in an emulated guest needs half a minute for its modules."""


_NOT_DISKS = ("loop", "ram", "zram", "sr", "fd")


@dataclass(frozen=True)
class Disk:
    """A disk of the engine's machine: its node and its numbers (``MAJOR:MINOR``)."""

    node: str
    numbers: str


class EnginePlace(Protocol):
    """An engine with the machine that it runs on."""

    api: Api

    @property
    def socket(self) -> str:
        """The engine's socket on this computer."""
        ...

    def run(self, command: str) -> str:
        """Run a shell command on the engine's machine as root; return its output."""
        ...

    def kill_engine(self) -> None:
        """SIGKILL the engine; return when the one that takes its place answers."""
        ...

    def revive(self) -> None:
        """Have an engine that answers, even if an earlier test ended it."""
        ...


class HostPlace:
    """An engine on this machine; the test starts it again, as a service manager would."""

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine
        self.api = engine.api
        self.socket = engine.socket

    def run(self, command: str) -> str:
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def kill_engine(self) -> None:
        self._engine.kill()
        self._engine.start()

    def revive(self) -> None:
        self._engine.revive()


class GuestPlace:
    """The engine of a virtual machine; the guest's init starts it again by itself."""

    NAME = "contract"

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.socket = str(manager.engine_socket(self.NAME))
        self.api = Api(self.socket)

    def run(self, command: str) -> str:
        with Session.connect(self.manager.endpoint(self.NAME)) as session:
            done = session.run(command)
        assert done.exit_code == 0, f"{command}: {done.stderr.decode()}"
        return done.stdout.decode()

    def kill_engine(self) -> None:
        self.run("kill -9 $(cat /run/desk/engine.pid)")
        self._wait_for_engine()

    def revive(self) -> None:
        self.manager.start(self.NAME)  # does nothing if it runs
        self._wait_for_engine()

    def restart(self) -> None:
        """Restart the machine in order; its containers come back by their restart policies."""
        self.manager.restart(self.NAME, policy_only=True)
        self._wait_for_engine()

    def _wait_for_engine(self) -> None:
        deadline = time.monotonic() + ENGINE_DEADLINE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.api.raw("GET", "/_ping")[0] == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"no engine answers after {ENGINE_DEADLINE_S:.0f} s")


@contextlib.contextmanager
def host_place() -> Iterator[HostPlace]:
    """Run an engine on this machine."""
    with running_engine() as engine:
        yield HostPlace(engine)


@contextlib.contextmanager
def guest_place(image: Path) -> Iterator[GuestPlace]:
    """Boot a machine with this guest image; it is removed at the end."""
    # Short: names of sockets may have about a hundred bytes.
    directory = Path(tempfile.mkdtemp(prefix="desk-"))
    manager = Manager(Home(directory))
    spec = MachineSpec(
        GuestPlace.NAME,
        memory_mib=1024,
        disk_gib=4,
        image=str(image),
        options={"accelerator": "tcg"},
    )
    try:
        manager.create(spec)
        manager.start(GuestPlace.NAME)
        yield GuestPlace(manager)
        manager.remove(GuestPlace.NAME, force=True)
    finally:
        with contextlib.suppress(Exception):  # it may be gone, or never have been
            manager.kill(GuestPlace.NAME)
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def disk_of(place: EnginePlace) -> Iterator[Disk]:
    """Find a disk of the machine; where it has no node (in a container), make one meanwhile."""
    listing = place.run("cd /sys/block; for d in *; do echo $d $(cat $d/dev); done")
    disks = [line.split() for line in listing.splitlines()]
    disks = [found for found in disks if not found[0].startswith(_NOT_DISKS)]
    assert disks, f"the machine has no disk: {listing}"
    name, numbers = disks[0]
    node = f"/dev/{name}"
    made = place.run(
        f"test -b {node} || {{ mknod {node} b {numbers.replace(':', ' ')}; echo made; }}"
    )
    try:
        yield Disk(node, numbers)
    finally:
        if made:
            place.run(f"rm {node}")


def layout_of(api: Api) -> Layout:
    """Return the cgroup version that the engine tells."""
    return LAYOUTS[api.get("/info")["CgroupVersion"]]


def execute(place: EnginePlace, container: str, script: str, **fields: Any) -> tuple[int, str]:
    """Run a shell script in a running container; return its exit code and both its outputs."""
    document = {
        "Cmd": ["sh", "-c", script], "AttachStdout": True, "AttachStderr": True, **fields,
    }  # fmt: skip
    exec_id = place.api.post(f"/containers/{container}/exec", document)["Id"]
    stream = Hijacked(place.socket, f"/exec/{exec_id}/start", {})
    try:
        if stream.status >= 400:
            raise ApiError(stream.status, stream.read_all().decode(errors="replace"))
        output = b"".join(part for _, part in frames(stream.read_all()))
    finally:
        stream.close()
    return place.api.get(f"/exec/{exec_id}/json")["ExitCode"], output.decode()


def limits_seen(place: EnginePlace, container: str) -> Seen:
    """Read a running container's limits where it sees them itself."""
    layout = layout_of(place.api)
    script = "cd /sys/fs/cgroup; for f in {}; do echo =$f; cat $f; done".format(
        " ".join(layout.files)
    )
    code, output = execute(place, container, script)
    assert code == 0, output
    texts = {}
    for part in output.split("=", 1)[1].split("\n="):
        name, _, text = part.partition("\n")
        texts[name] = text.strip()
    return layout.parse(texts)


def remove_everything(api: Api) -> None:
    """Remove all containers and what they left."""
    for container in api.get("/containers/json", all=True):
        with contextlib.suppress(ApiError):  # it removes itself
            api.delete(f"/containers/{container['Id']}", force=True, v=True)
    until(lambda: not api.get("/containers/json", all=True))  # and it does
