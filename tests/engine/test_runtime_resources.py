"""Limits, statistics, pausing and out-of-memory, on the machine's own cgroups."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deskd.domain.container import HostConfig
from deskd.errors import Conflict, InvalidArgument
from deskd.kernel.cgroup import cgroup_at
from deskd.kernel.cgroup.v1 import CgroupV1
from deskd.runtime.client import LauncherRuntime, MonitoredProcess
from tests.engine.runtime_harness import Harness
from tests.engine.runtime_harness import busybox_root as busybox_root  # noqa: PLC0414
from tests.engine.runtime_harness import harness as harness  # noqa: PLC0414

pytestmark = pytest.mark.root

MIB = 1024 * 1024


@asynccontextmanager
async def running(
    harness: Harness, runtime: LauncherRuntime, script: str, host: HostConfig
) -> AsyncIterator[MonitoredProcess]:
    process = await runtime.create(harness.plan("sh", "-c", script, host=host))
    await process.release()
    try:
        yield process
    finally:
        await process.signal(signal.SIGKILL)
        await process.wait()


def limit_file(harness: Harness, key: str, v1: tuple[str, str], v2: str) -> str:
    """Read a limit back from the kernel, whichever version this machine has."""
    cgroup = cgroup_at(harness.hierarchy, harness.cgroup_parent, key)
    if isinstance(cgroup, CgroupV1):
        return Path(cgroup.directory(v1[0]), v1[1]).read_text().strip()
    return Path(cgroup.path, v2).read_text().strip()


def test_limits_reach_the_kernel_and_can_change(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        host = HostConfig(
            memory=64 * MIB, nano_cpus=500_000_000, pids_limit=30, cpuset_cpus="0", cpu_shares=512
        )
        async with running(harness, runtime, "sleep 600", host) as container:
            key = container.key

            def memory() -> str:
                return limit_file(harness, key, ("memory", "memory.limit_in_bytes"), "memory.max")

            assert memory() == str(64 * MIB)
            quota = limit_file(harness, key, ("cpu", "cpu.cfs_quota_us"), "cpu.max")
            assert quota in ("50000", "50000 100000")
            assert limit_file(harness, key, ("pids", "pids.max"), "pids.max") == "30"
            assert limit_file(harness, key, ("cpuset", "cpuset.cpus"), "cpuset.cpus") == "0"
            harness.resources.update(key, HostConfig(memory=128 * MIB, memory_swap=-1))
            assert memory() == str(128 * MIB)
            harness.resources.update(key, HostConfig(memory=32 * MIB, memory_swap=64 * MIB))
            assert memory() == str(32 * MIB)

    harness.play(scenario)


def test_out_of_memory_is_told(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        host = HostConfig(memory=16 * MIB)
        plan = harness.plan("sh", "-c", "tail -c 100m /dev/zero", host=host)
        _, _, ended = await harness.run(runtime, plan)
        assert ended.code == 137
        assert ended.oom_killed
        _, _, fine = await harness.run(runtime, harness.plan("true", host=host))
        assert not fine.oom_killed

    harness.play(scenario)


def test_the_pid_limit_stops_a_fork_bomb(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 50 & done; echo done"
        plan = harness.plan("sh", "-c", script, host=HostConfig(pids_limit=5))
        _, err, ended = await harness.run(runtime, plan)
        assert "can't fork" in err
        assert ended.code != 0

    harness.play(scenario)


def test_pause_stops_everything_and_resume_goes_on(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        script = "while :; do echo tick; sleep 0.01; done"
        process = await runtime.create(harness.plan("sh", "-c", script))
        stream = await process.attach(stdin=False, stdout=True, stderr=True)
        await process.release()
        assert b"tick" in await stream.read()
        harness.resources.pause(process.key)
        async with asyncio.timeout(60):
            with contextlib.suppress(TimeoutError):
                while True:  # what was on its way
                    await asyncio.wait_for(stream.read(), 0.5)
        harness.resources.resume(process.key)
        async with asyncio.timeout(60):
            assert b"tick" in await stream.read()
        await stream.close()
        await process.signal(signal.SIGKILL)
        await process.wait()

    harness.play(scenario)


def test_statistics_have_the_apis_shape(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 600"
        async with running(harness, runtime, script, HostConfig(memory=64 * MIB)) as container:
            async with asyncio.timeout(60):
                while True:
                    stats = harness.resources.stats(container.key)
                    cpu, memory = stats["cpu_stats"], stats["memory_stats"]
                    if cpu["cpu_usage"]["total_usage"] > 1_000_000:
                        break
                    await asyncio.sleep(0.05)
            assert cpu["system_cpu_usage"] > cpu["cpu_usage"]["total_usage"]
            assert cpu["online_cpus"] >= 1
            assert set(cpu["throttling_data"]) == {
                "periods",
                "throttled_periods",
                "throttled_time",
            }
            assert 0 < memory["usage"] < memory["limit"] == 64 * MIB
            assert "cache" in memory["stats"] or "file" in memory["stats"]
            assert stats["pids_stats"]["current"] >= 1
            assert "io_service_bytes_recursive" in stats["blkio_stats"]
            assert container.pid in harness.resources.pids(container.key)

    harness.play(scenario)


def test_a_container_that_does_not_run_has_no_resources(harness: Harness) -> None:
    key = "0" * 64
    with pytest.raises(Conflict, match="is not running"):
        harness.resources.pause(key)
    assert harness.resources.pids(key) == []
    harness.resources.remove(key)


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (HostConfig(memory=1024), "Minimum memory limit"),
        (HostConfig(memory=8 * MIB, memory_swap=7 * MIB), "memoryswap"),
        (HostConfig(memory_swap=7 * MIB), "set the Memory limit"),
        (HostConfig(nano_cpus=10**15), "range of CPUs"),
        (HostConfig(cpu_quota=5), "quota"),
        (HostConfig(oom_score_adj=5000), "oom score"),
        (HostConfig(device_cgroup_rules=["nonsense"]), "device cgroup rule"),
    ],
)
def test_contradictions_are_refused(harness: Harness, host: HostConfig, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        harness.plan("true", host=host)


def test_a_processors_number_that_is_not_there(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        with pytest.raises(InvalidArgument, match=r"cpuset\.cpus"):
            await runtime.create(harness.plan("true", host=HostConfig(cpuset_cpus="4000")))

    harness.play(scenario)
