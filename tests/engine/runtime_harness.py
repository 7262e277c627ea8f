"""A runtime of its own for each test: launcher process, directories, cgroup parent, guard."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from deskd.domain.container import ContainerConfig, HostConfig
from deskd.domain.mount import MountStep
from deskd.domain.process import Exit
from deskd.kernel.cgroup import cgroup_at
from deskd.kernel.cgroup.hierarchy import Hierarchy, detect
from deskd.kernel.process import start_ticks
from deskd.record import replace
from deskd.runtime.client import LauncherRuntime, MonitoredProcess
from deskd.runtime.launching import fork_launcher
from deskd.runtime.monitored_stream import MonitoredStream
from deskd.runtime.plan import NamespaceSpec, Plan
from deskd.runtime.resources import CgroupResources
from deskd.runtime.spec import (
    ContainerInputs,
    ExecInputs,
    build_container_plan,
    build_exec_plan,
    resolve_namespaces,
)
from tests.engine_process import until

T = TypeVar("T")


def make_busybox_root(path: Path) -> Path:
    """Make a small root file system of Debian's busybox-static."""
    for name in ("bin", "etc", "proc", "dev", "sys", "tmp", "root"):
        (path / name).mkdir(parents=True)
    (path / "tmp").chmod(0o1777)
    shutil.copy("/bin/busybox", path / "bin" / "busybox")
    applets = subprocess.run(
        ["/bin/busybox", "--list"], check=True, capture_output=True, text=True
    ).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (path / "bin" / applet).symlink_to("busybox")
    (path / "etc" / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
    )
    (path / "etc" / "group").write_text("root:x:0:\napp:x:1000:\nextra:x:2000:app\n")
    return path


class Harness:
    """What a test needs to run processes."""

    def __init__(self, base: Path, root: Path, hierarchy: Hierarchy | None = None) -> None:
        self.base = base
        self.root = root
        self.exec_root = str(base / "run")
        self.hierarchy = hierarchy or detect()
        self.cgroup_parent = f"desk-test-{os.getpid()}-{secrets.token_hex(3)}"
        self.resources = CgroupResources(lambda key: self.cgroup_parent, self.hierarchy)
        self.launcher_pid = 0
        self._socket: socket.socket | None = None

    # --- launcher ---

    def start_launcher(self) -> None:
        """Start a launcher; the former one must have been stopped."""
        self.launcher_pid, self._socket = fork_launcher(self.exec_root, self.hierarchy)

    def _reap_launcher(self) -> None:
        """The launcher leaves when the engine's end of its socket closes."""
        if self.launcher_pid:
            _, status = os.waitpid(self.launcher_pid, 0)
            assert status == 0, f"the launcher ended with status {status}"
        self.launcher_pid, self._socket = 0, None

    def play(self, scenario: Callable[[LauncherRuntime], Awaitable[T]]) -> T:
        """Run a scenario with an engine's worth of runtime; the engine dies at its end."""

        async def main() -> T:
            if self._socket is None:
                self.start_launcher()
            assert self._socket is not None
            runtime = LauncherRuntime(self._socket, self.exec_root)
            try:
                async with asyncio.timeout(240):
                    return await scenario(runtime)
            finally:
                await runtime.close()
                self._reap_launcher()

        return asyncio.run(main())

    # --- plans ---

    def plan(
        self,
        *command: str,
        host: HostConfig | None = None,
        namespaces: NamespaceSpec | None = None,
        log: bool = False,
        mounts: Sequence[MountStep] = (),
        **config: Any,
    ) -> Plan:
        """Plan a container on the busybox root."""
        host = host or HostConfig()
        key = secrets.token_hex(32)
        directory = self.base / "containers" / key
        for name in ("upper", "work"):
            (directory / name).mkdir(parents=True)
        data = f"lowerdir={self.root},upperdir={directory}/upper,workdir={directory}/work"
        inputs = ContainerInputs(
            container_id=key,
            config=ContainerConfig(cmd=list(command), **config),
            host_config=host,
            root=(MountStep("overlay", "/", data=data),),
            mounts=tuple(mounts),
            namespaces=namespaces or resolve_namespaces(host, lambda name: 0),
            log_path=str(self.log_path(key)) if log else "",
            log_options=host.log_config.config or {},
            cgroup_parent=self.cgroup_parent,
        )
        return build_container_plan(inputs)

    def exec_plan(
        self,
        process: MonitoredProcess,
        *command: str,
        host: HostConfig | None = None,
        container: ContainerConfig | None = None,
        **wishes: Any,
    ) -> Plan:
        """Plan an exec in a running container."""
        return build_exec_plan(
            ExecInputs(
                exec_id=secrets.token_hex(32),
                container_id=process.key,
                container_pid=process.pid,
                config=container or ContainerConfig(),
                host_config=host or HostConfig(),
                command=command,
                cgroup_parent=self.cgroup_parent,
                **wishes,
            )
        )

    def log_path(self, key: str) -> Path:
        return self.base / "containers" / key / f"{key}-json.log"

    def upper(self, key: str) -> Path:
        return self.base / "containers" / key / "upper"

    async def run(self, runtime: LauncherRuntime, plan: Plan) -> tuple[str, str, Exit]:
        """Run a plan to its end; return its two outputs (one for a terminal) and its exit."""
        process = await runtime.create(plan)
        stream = await process.attach(stdin=False, stdout=True, stderr=True)
        await process.release()
        raw = await read_all(stream)
        ended = await process.wait()
        await stream.close()
        await runtime.forget(plan.key)
        if plan.streams.tty:
            return raw.decode(errors="replace"), "", ended
        outputs = split_frames(raw)
        return outputs[1].decode(errors="replace"), outputs[2].decode(errors="replace"), ended

    # --- guard ---

    def close(self) -> None:
        """Stop everything; assert that the test had left nothing."""
        left = self._running_monitors()
        for pid in left:
            os.kill(pid, 9)
        cgroup = cgroup_at(self.hierarchy, "/", self.cgroup_parent)
        deadline = time.monotonic() + 60
        while (members := self._members()) and time.monotonic() < deadline:
            time.sleep(0.01)  # a monitor's last step removes its own
        cgroup.kill()
        cgroup.remove()
        mounts = Path("/proc/self/mountinfo").read_text()
        until(self._is_removed)
        assert not left, "the test left monitors running"
        assert not members, f"the test left cgroups: {members}"
        assert str(self.base) not in mounts, "the test left mounts"

    def _is_removed(self) -> bool:
        """Remove the directory; an exec's monitor may be removing its own part meanwhile."""
        shutil.rmtree(self.base, ignore_errors=True)
        return not self.base.exists()

    def _members(self) -> list[str]:
        found = []
        roots = set(self.hierarchy.controllers.values()) or {self.hierarchy.root}
        for root in roots:
            path = Path(root) / self.cgroup_parent
            if path.is_dir():
                found += [str(entry) for entry in path.iterdir() if entry.is_dir()]
        return found

    def _running_monitors(self) -> list[int]:
        import json

        found = []
        for path in Path(self.exec_root, "processes").glob("*/state.json"):
            try:
                state = json.loads(path.read_text())
            except FileNotFoundError:  # an exec's monitor removes its own
                continue
            if start_ticks(state["monitor_pid"]) == state["start_ticks"]:
                deadline = time.monotonic() + 60
                while start_ticks(state["monitor_pid"]) == state["start_ticks"]:
                    if time.monotonic() > deadline:
                        found.append(state["monitor_pid"])
                        break
                    time.sleep(0.01)
        return found


async def read_all(stream: MonitoredStream) -> bytes:
    """Read a stream to its end."""
    parts = []
    while data := await stream.read():
        parts.append(data)
    return b"".join(parts)


async def read_until(stream: MonitoredStream, wanted: bytes) -> bytes:
    """Read a stream until ``wanted`` has come."""
    found = b""
    while wanted not in found:
        data = await stream.read()
        assert data, f"the stream ended before {wanted!r}: {found!r}"
        found += data
    return found


def split_frames(raw: bytes) -> dict[int, bytes]:
    """Take Docker's multiplexed stream apart: stream number to bytes."""
    found = {1: b"", 2: b""}
    while raw:
        stream, length = raw[0], int.from_bytes(raw[4:8], "big")
        assert raw[1:4] == b"\0\0\0"
        assert len(raw) >= 8 + length
        found[stream] += raw[8 : 8 + length]
        raw = raw[8 + length :]
    return found


def with_host(plan: Plan, **namespaces: str) -> Plan:
    """Change namespaces of a plan."""
    return replace(plan, namespaces=replace(plan.namespaces, **namespaces))


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_busybox_root(tmp_path_factory.mktemp("busybox") / "root")


@pytest.fixture
def harness(busybox_root: Path) -> Iterator[Harness]:
    made = Harness(Path(tempfile.mkdtemp(prefix="desk-")), busybox_root)
    try:
        yield made
    finally:
        made.close()
