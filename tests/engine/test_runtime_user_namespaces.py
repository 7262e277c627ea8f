"""Containers whose root is nobody outside (``--userns-remap``)."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from deskd.domain.container import HostConfig
from deskd.domain.mount import MountStep
from deskd.kernel.cgroup.hierarchy import Hierarchy, detect
from deskd.runtime.client import LauncherRuntime
from deskd.runtime.plan import NamespaceSpec
from deskd.runtime.spec import resolve_namespaces
from tests.engine.runtime_harness import Harness, read_until
from tests.engine.runtime_harness import busybox_root as busybox_root  # noqa: PLC0414
from tests.engine.runtime_harness import harness as harness  # noqa: PLC0414

pytestmark = pytest.mark.root

BASE = 300_000
MAP = ((0, BASE, 65536),)


@pytest.fixture
def remapped(harness: Harness) -> NamespaceSpec:
    """Namespaces for the harness, whose image now belongs to the mapped root."""
    root = harness.base / "image"
    shutil.copytree(harness.root, root, symlinks=True)
    for directory, names, files in os.walk(root):
        for name in (".", *names, *files):
            os.chown(Path(directory) / name, BASE, BASE, follow_symlinks=False)
    harness.root = root
    return resolve_namespaces(HostConfig(), lambda name: 0, uid_map=MAP, gid_map=MAP)


def test_root_inside_is_nobody_outside(harness: Harness, remapped: NamespaceSpec) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan(
            "sh", "-c", "id -u; touch /made; echo > /dev/null; sleep 600", namespaces=remapped
        )
        os.chown(harness.upper(plan.key), BASE, BASE)
        process = await runtime.create(plan)
        stream = await process.attach(stdin=False, stdout=True, stderr=True)
        await process.release()
        assert b"0\n" in await stream.read()
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert f"Uid:\t{BASE}\t" in status
        exec_plan = harness.exec_plan(
            process, "sh", "-c", "id -u; cat /proc/self/uid_map; ls /made", user="app"
        )
        out, err, _ = await harness.run(runtime, exec_plan)
        assert out.split() == ["1000", "0", str(BASE), "65536", "/made"], err
        assert (harness.upper(plan.key) / "made").stat().st_uid == BASE
        assert process.pid in harness.resources.pids(plan.key)
        await process.signal(signal.SIGKILL)
        await process.wait()
        await stream.close()

    harness.play(scenario)


def test_it_has_all_its_places_and_cannot_touch_the_machine(
    harness: Harness, remapped: NamespaceSpec, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden\n")
    secret.chmod(0o600)
    tmp_path.chmod(0o755)

    async def scenario(runtime: LauncherRuntime) -> None:
        steps = [MountStep("bind", "/given", source=str(tmp_path))]
        script = (
            "cat /given/secret; echo x > /given/new; hostname changed && hostname;"
            " mount | grep -cE ' /(proc|sys|dev|dev/pts|dev/shm|dev/mqueue) ';"
            " ls /dev/null /sys/fs/cgroup > /dev/null && echo fine; ip link show lo"
        )
        host = HostConfig(cap_add=["SYS_ADMIN"])
        plan = harness.plan("sh", "-c", script, namespaces=remapped, mounts=steps, host=host)
        os.chown(harness.upper(plan.key), BASE, BASE)
        out, err, _ = await harness.run(runtime, plan)
        assert "hidden" not in out
        assert err.count("Permission denied") + err.count("can't create") >= 2
        assert "changed\n6\nfine\n" in out
        assert "UP" in out

    harness.play(scenario)


def test_a_terminal_in_a_user_namespace(harness: Harness, remapped: NamespaceSpec) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan("tty", tty=True, namespaces=remapped)
        os.chown(harness.upper(plan.key), BASE, BASE)
        out, _, ended = await harness.run(runtime, plan)
        assert (out.strip(), ended.code) == ("/dev/pts/0", 0)

    harness.play(scenario)


def test_joining_a_user_namespace_in_a_version_2_cgroup(busybox_root: Path) -> None:
    """The process is born in its cgroup there, by a helper that has no rights on the machine."""
    hierarchy = Hierarchy(2, detect().root, {})
    harness = Harness(Path(tempfile.mkdtemp(prefix="desk-")), busybox_root, hierarchy)

    def spaces(**modes: Any) -> NamespaceSpec:
        return resolve_namespaces(HostConfig(**modes), int, uid_map=MAP, gid_map=MAP)

    async def scenario(runtime: LauncherRuntime) -> None:
        donor = harness.plan("sleep", "600", namespaces=spaces())
        os.chown(harness.upper(donor.key), BASE, BASE)
        held = await runtime.create(donor)
        await held.release()
        modes = {f"{kind}_mode": f"container:{held.pid}" for kind in ("network", "ipc", "pid")}
        shared = spaces(**modes)
        assert shared.user == str(held.pid)
        plan = harness.plan("sh", "-c", "id -u; ps; exec sleep 600", namespaces=shared)
        os.chown(harness.upper(plan.key), BASE, BASE)
        process = await runtime.create(plan)
        assert harness.resources.pids(plan.key) == [process.pid]
        stream = await process.attach(stdin=False, stdout=True, stderr=True)
        await process.release()
        text = await read_until(stream, b"sleep 600")
        assert b"0\n" in text
        for kind, same in (("user", True), ("net", True), ("pid", True), ("uts", False)):
            names = {Path(f"/proc/{pid}/ns/{kind}").readlink() for pid in (held.pid, process.pid)}
            assert (len(names) == 1) == same, kind
        for one in (process, held):
            await one.signal(signal.SIGKILL)
            assert (await one.wait()).code == 137
        await stream.close()

    try:
        harness.play(scenario)
    finally:
        harness.close()
