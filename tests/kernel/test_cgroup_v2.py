"""cgroup version 2 on the real tree of this machine, which may be a hybrid's empty-handed one."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deskd.domain.container import HostConfig
from deskd.kernel.cgroup.hierarchy import Hierarchy, detect
from deskd.kernel.cgroup.limits import DeviceRule, Limits
from deskd.kernel.cgroup.oom import _Changes
from deskd.kernel.cgroup.v2 import CgroupV2
from deskd.runtime.client import LauncherRuntime
from tests.engine.runtime_harness import Harness
from tests.engine.runtime_harness import busybox_root as busybox_root  # noqa: PLC0414

pytestmark = pytest.mark.root


@pytest.fixture
def hierarchy() -> Hierarchy:
    root = detect().root
    assert root, "this machine has no cgroup2 mount"
    return Hierarchy(2, root, {})


@pytest.fixture
def cgroup(hierarchy: Hierarchy) -> Iterator[CgroupV2]:
    parent = f"desk-test-{os.getpid()}"
    made = CgroupV2(hierarchy, parent, "one")
    made.create()
    yield made
    made.kill()
    made.remove()
    Path(hierarchy.root, parent).rmdir()
    assert not made.exists()


def spawn(cgroup: CgroupV2, *command: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    Path(cgroup.path, "cgroup.procs").write_text(str(process.pid))
    return process


def cpu_ticks(pid: int) -> int:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_freezing_listing_and_killing(cgroup: CgroupV2) -> None:
    process = spawn(cgroup, "sh", "-c", "while :; do :; done")
    assert cgroup.pids() == [process.pid]
    cgroup.freeze()
    used = cpu_ticks(process.pid)
    time.sleep(0.1)
    assert cpu_ticks(process.pid) == used
    cgroup.thaw()
    deadline = time.monotonic() + 60
    while cpu_ticks(process.pid) == used and time.monotonic() < deadline:
        time.sleep(0.02)
    assert cpu_ticks(process.pid) > used
    process.kill()
    other = spawn(cgroup, "sleep", "600")
    cgroup.kill()
    assert other.wait(timeout=60) == -signal.SIGKILL
    for done in (process, other):
        done.communicate()


def test_the_device_list_is_enforced(cgroup: CgroupV2) -> None:
    cgroup.apply(Limits(devices=(DeviceRule("c", 1, 3, "rwm"), DeviceRule("c", 1, 5, "r"))))
    script = (
        "sleep 0.2; echo x > /dev/null && echo null-fine; head -c1 /dev/zero > /dev/null && "
        "echo zero-fine; echo x > /dev/zero; head -c1 /dev/urandom > /dev/null"
    )
    out, err = spawn(cgroup, "sh", "-c", script).communicate(timeout=60)
    assert out.split() == [b"null-fine", b"zero-fine"]
    assert err.count(b"Operation not permitted") == 2


def test_a_device_list_may_end_with_everything(cgroup: CgroupV2) -> None:
    cgroup.apply(Limits(devices=(DeviceRule("c", 1, 3, "r"), DeviceRule("a", None, None, "rwm"))))
    script = "sleep 0.2; : <>/dev/full && echo opened"
    out, err = spawn(cgroup, "sh", "-c", script).communicate(timeout=60)
    assert (out, err) == (b"opened\n", b"")


def test_an_exec_goes_where_the_first_process_is(cgroup: CgroupV2) -> None:
    """A cgroup that has handed controllers down takes no processes itself."""
    inner = Path(cgroup.path, "inner")
    inner.mkdir()
    process = spawn(cgroup, "sleep", "600")
    assert cgroup.open_beside(process.pid) is None
    (inner / "cgroup.procs").write_text(str(process.pid))
    beside = cgroup.open_beside(process.pid)
    assert beside is not None
    assert Path(f"/proc/self/fd/{beside}").readlink() == inner
    os.close(beside)
    assert cgroup.open_beside(os.getpid()) is None
    cgroup.kill()
    process.communicate()


def test_a_change_of_events_is_told_once_and_the_groups_end_is_no_storm(cgroup: CgroupV2) -> None:
    """``memory.events`` needs the memory controller, which a hybrid's tree has not; the file
    ``cgroup.events`` is told of in the same way."""
    changes = _Changes(f"{cgroup.path}/cgroup.events")
    try:
        assert not readable(changes.fileno())
        process = spawn(cgroup, "sleep", "600")
        assert readable(changes.fileno(), timeout_s=10)
        changes.drain()
        assert not readable(changes.fileno())
        cgroup.kill()
        process.communicate()
        assert readable(changes.fileno(), timeout_s=10)
        cgroup.remove()
        changes.drain()
        assert not readable(changes.fileno())
    finally:
        changes.close()


def readable(fd: int, timeout_s: float = 0) -> bool:
    return bool(select.select([fd], [], [], timeout_s)[0])


def test_a_container_lives_in_a_version_2_cgroup(hierarchy: Hierarchy, busybox_root: Path) -> None:
    harness = Harness(Path(tempfile.mkdtemp(prefix="desk-")), busybox_root, hierarchy)

    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan("sh", "-c", "mount | grep cgroup; sleep 600", host=HostConfig())
        process = await runtime.create(plan)
        stream = await process.attach(stdin=False, stdout=True, stderr=True)
        await process.release()
        text = await stream.read()
        assert b"on /sys/fs/cgroup type cgroup2 (ro,nosuid,nodev,noexec" in text
        assert process.pid in harness.resources.pids(plan.key)
        exec_plan = harness.exec_plan(
            process, "sh", "-c", "cat /proc/self/cgroup; mknod /m c 1 11; cat /m"
        )
        out, err, _ = await harness.run(runtime, exec_plan)
        assert "0::/\n" in out
        assert "Operation not permitted" in err
        harness.resources.pause(plan.key)
        harness.resources.resume(plan.key)
        await process.signal(signal.SIGKILL)
        assert (await process.wait()).code == 137
        await stream.close()

    try:
        harness.play(scenario)
    finally:
        harness.close()
