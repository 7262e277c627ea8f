"""Programs executed in running containers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deskd.domain.container import ContainerConfig, HostConfig
from deskd.errors import Conflict, StartFailed
from deskd.record import replace
from deskd.runtime.client import LauncherRuntime, MonitoredProcess
from tests.engine.runtime_harness import Harness, read_all, read_until, split_frames
from tests.engine.runtime_harness import busybox_root as busybox_root  # noqa: PLC0414
from tests.engine.runtime_harness import harness as harness  # noqa: PLC0414
from tests.engine_process import until

pytestmark = pytest.mark.root


@asynccontextmanager
async def running(
    harness: Harness, runtime: LauncherRuntime, *command: str, host: HostConfig | None = None
) -> AsyncIterator[MonitoredProcess]:
    """A container that runs for the length of the block."""
    process = await runtime.create(harness.plan(*(command or ("sleep", "600")), host=host))
    await process.release()
    try:
        yield process
    finally:
        await process.signal(signal.SIGKILL)
        await process.wait()


def test_an_exec_sees_the_containers_world(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as container:
            plan = harness.exec_plan(container, "sh", "-c", "hostname; ps -o comm | sort; ls /")
            out, err, ended = await harness.run(runtime, plan)
            assert out.startswith(f"{container.key[:12]}\n")
            assert "sleep" in out
            assert "bin" in out.splitlines()
            assert (err, ended.code) == ("", 0)
            for name in ("mnt", "uts", "ipc", "net", "pid", "cgroup"):
                plan = harness.exec_plan(container, "readlink", f"/proc/self/ns/{name}")
                out, _, _ = await harness.run(runtime, plan)
                assert out.strip() == str(Path(f"/proc/{container.pid}/ns/{name}").readlink())

    harness.play(scenario)


def test_an_exec_whose_end_was_told_leaves_nothing(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as container:
            plan = harness.exec_plan(container, "sh", "-c", "echo done; exit 3")
            process, stream = await runtime.start(plan, stdout=True)
            directory = Path(runtime.exec_root.process(plan.key))
            assert split_frames(await read_all(stream))[1] == b"done\n"
            assert (await process.wait()).code == 3
            await stream.close()
            await runtime.forget(plan.key)
            assert runtime.get(plan.key) is None
            assert not directory.exists()

    harness.play(scenario)


def test_an_exec_that_ends_without_an_engine_is_found_and_forgotten(harness: Harness) -> None:
    plan = harness.plan("sleep", "600")

    async def first_engine(runtime: LauncherRuntime) -> Path:
        container = await runtime.create(plan)
        await container.release()
        execution = harness.exec_plan(container, "sh", "-c", "sleep 0.3; exit 4")
        _, stream = await runtime.start(execution, stdout=True)
        await stream.close()
        return Path(runtime.exec_root.exit_record(execution.key))

    record = harness.play(first_engine)
    until(record.exists)

    async def second_engine(runtime: LauncherRuntime) -> None:
        found = {monitor.key: monitor for monitor in await runtime.reconcile()}
        (key,) = found.keys() - {plan.key}
        ended = found[key].exit
        assert ended is not None
        assert ended.code == 4
        await runtime.forget(key)
        assert not record.parent.exists()
        container = runtime.get(plan.key)
        assert container is not None
        await container.signal(signal.SIGKILL)
        await container.wait()
        await runtime.forget(plan.key)

    harness.play(second_engine)


def test_an_exec_has_its_own_user_directory_and_environment(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as container:
            plan = harness.exec_plan(
                container,
                "sh",
                "-c",
                "id -u; id -G; pwd; echo $ONE-$TWO-$HOME",
                container=ContainerConfig(env=["ONE=1", "TWO=2"]),
                env=["TWO=two"],
                user="app",
                working_dir="/tmp",
            )
            out, _, _ = await harness.run(runtime, plan)
            assert out.splitlines() == ["1000", "1000 2000", "/tmp", "1-two-/home/app"]

    harness.play(scenario)


def test_an_exec_is_confined_like_its_container(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as container:
            script = "grep -E 'CapEff|CapBnd|Seccomp:' /proc/self/status"
            own, _, _ = await harness.run(runtime, harness.plan("sh", "-c", script))
            plan = harness.exec_plan(container, "sh", "-c", script)
            assert (await harness.run(runtime, plan))[0] == own
            plan = harness.exec_plan(container, "sh", "-c", script, privileged=True)
            privileged = (await harness.run(runtime, plan))[0]
            assert int(privileged.split()[1], 16) > int(own.split()[1], 16)

    harness.play(scenario)


def test_an_exec_counts_in_the_containers_cgroup(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as container:
            process = await runtime.create(harness.exec_plan(container, "sleep", "60"))
            await process.release()
            assert harness.resources.pids(container.key) == sorted([container.pid, process.pid])
            await process.signal(signal.SIGTERM)
            assert (await process.wait()).code == 143

    harness.play(scenario)


def test_an_exec_with_a_terminal(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as container:
            plan = harness.exec_plan(
                container, "sh", tty=True, open_stdin=True, rows=20, columns=70
            )
            process = await runtime.create(plan)
            stream = await process.attach(stdin=True, stdout=True, stderr=True)
            await process.release()
            await stream.write(b"tty; stty size\n")
            text = await read_until(stream, b"20 70")
            assert b"/dev/pts/0" in text
            await process.resize(30, 90)
            await stream.write(b"stty size; exit 3\n")
            assert b"30 90" in await read_all(stream)
            assert (await process.wait()).code == 3
            await stream.close()

    harness.play(scenario)


def test_an_exec_of_a_missing_program(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as container:
            with pytest.raises(StartFailed, match="executable file not found") as caught:
                await runtime.create(harness.exec_plan(container, "nothing-here"))
            assert caught.value.exit_code == 127

    harness.play(scenario)


def test_an_exec_in_a_container_that_has_ended(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as container:
            plan = harness.exec_plan(container, "true")
        with pytest.raises(Conflict, match="is not running"):
            await runtime.create(plan)

    harness.play(scenario)


def test_an_exec_never_enters_a_recycled_pid(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as one, running(harness, runtime) as two:
            plan = harness.exec_plan(one, "true")
            assert plan.target is not None
            wrong = replace(plan, target=replace(plan.target, pid=two.pid))
            with pytest.raises(Conflict, match="is not running"):
                await runtime.create(wrong)

    harness.play(scenario)


def test_execs_end_with_their_container(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as container:
            process = await runtime.create(harness.exec_plan(container, "sleep", "600"))
            await process.release()
        assert (await process.wait()).code == 137

    harness.play(scenario)


def test_nothing_of_the_engines_leaks_into_an_exec(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as container:
            script = "for f in /proc/self/fd/*; do readlink $f; done; readlink /proc/self/cwd"
            out, _, _ = await harness.run(runtime, harness.exec_plan(container, "sh", "-c", script))
            lines = [line for line in out.splitlines() if "pipe:" not in line]
            assert set(lines) <= {"/dev/null", "/"}

    harness.play(scenario)


def test_a_working_directory_cannot_lead_out(harness: Harness) -> None:
    """The way of CVE-2024-21626: a directory reached through a leaked descriptor."""

    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as container:
            for number in range(3, 12):
                for path in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/../.."):
                    plan = harness.exec_plan(container, "sh", "-c", "ls /; pwd", working_dir=path)
                    try:
                        out, _, _ = await harness.run(runtime, plan)
                    except StartFailed:
                        continue
                    assert "work" not in out.splitlines()

    harness.play(scenario)


def test_background_output_does_not_hold_an_exec(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        async with running(harness, runtime) as container:
            plan = harness.exec_plan(container, "sh", "-c", "sleep 300 & echo now")
            async with asyncio.timeout(60):
                out, _, ended = await harness.run(runtime, plan)
            assert (out, ended.code) == ("now\n", 0)

    harness.play(scenario)
