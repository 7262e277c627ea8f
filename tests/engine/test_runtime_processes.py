"""Containers' processes from start to exit, on the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from deskd.domain.container import HostConfig, LogConfig
from deskd.errors import Conflict, DeskdError, InvalidArgument, StartFailed, SystemFailure
from deskd.kernel.process import private_bytes
from deskd.record import replace
from deskd.runtime.client import LauncherRuntime
from tests.engine.runtime_harness import Harness, read_all, read_until, split_frames
from tests.engine.runtime_harness import busybox_root as busybox_root  # noqa: PLC0414
from tests.engine.runtime_harness import harness as harness  # noqa: PLC0414
from tests.engine_process import until

pytestmark = pytest.mark.root


def gone(pid: int) -> bool:
    """Say whether a process has ended; one that waits for a slow init to reap it has."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text[text.rindex(")") + 2] in "ZX"


def test_output_streams_and_exit_code(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan("sh", "-c", "echo out; echo err >&2; exit 7")
        out, err, ended = await harness.run(runtime, plan)
        assert (out, err, ended.code) == ("out\n", "err\n", 7)
        assert abs(ended.finished_at_ns - time.time_ns()) < 60e9

    harness.play(scenario)


def test_a_killed_process_reports_its_signal(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        process = await runtime.create(harness.plan("sleep", "60"))
        await process.release()
        await process.signal(signal.SIGKILL)
        assert (await process.wait()).code == 137

    harness.play(scenario)


def test_a_signal_reaches_a_program_that_handles_it(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        script = "trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
        process = await runtime.create(harness.plan("sh", "-c", script))
        stream = await process.attach(stdin=False, stdout=True, stderr=True)
        await process.release()
        await read_until(stream, b"ready\n")
        await process.signal(signal.SIGUSR1)
        assert b"caught" in await read_all(stream)
        assert (await process.wait()).code == 3
        await stream.close()

    harness.play(scenario)


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        ("nothing-here", 127, 'exec: "nothing-here": executable file not found in $PATH'),
        ("/no/such", 127, 'exec: "/no/such": stat /no/such: no such file or directory'),
        ("/etc/passwd", 126, 'exec: "/etc/passwd": permission denied'),
        ("/etc", 126, 'exec: "/etc": is a directory: permission denied'),
    ],
)
def test_a_program_that_cannot_be_executed(
    harness: Harness, command: str, code: int, text: str
) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan(command)
        with pytest.raises(StartFailed) as caught:
            await runtime.create(plan)
        assert caught.value.exit_code == code
        assert text in str(caught.value)
        assert not Path(runtime.exec_root.process(plan.key)).exists()

    harness.play(scenario)


def test_a_file_of_an_unknown_format_fails_at_release(harness: Harness, tmp_path: Path) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan("/broken")
        program = harness.upper(plan.key) / "broken"
        program.write_bytes(b"\x7fELFnot really")
        program.chmod(0o755)
        process = await runtime.create(plan)
        with pytest.raises(StartFailed, match="exec format error") as caught:
            await process.release()
        assert caught.value.exit_code == 126
        assert not Path(runtime.exec_root.process(plan.key)).exists()

    harness.play(scenario)


def test_a_failing_mount_names_the_step(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan("true")
        assert plan.root is not None
        step = replace(plan.root.steps[0], data="lowerdir=/does/not/exist")
        broken = replace(plan, root=replace(plan.root, steps=(step,)))
        with pytest.raises(SystemFailure, match=r"overlay /: .*"):
            await runtime.create(broken)

    harness.play(scenario)


def test_input_reaches_the_program_and_its_end_does_too(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan("cat", open_stdin=True, stdin_once=True)
        process = await runtime.create(plan)
        stream = await process.attach(stdin=True, stdout=True, stderr=True)
        await stream.write(b"before the start ")
        await process.release()
        data = b"x" * 300_000
        reader = asyncio.create_task(read_all(stream))
        await stream.write(data)
        await stream.close_stdin()
        assert split_frames(await reader)[1] == b"before the start " + data
        assert (await process.wait()).code == 0
        await stream.close()

    harness.play(scenario)


def test_without_open_stdin_the_program_reads_nothing(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        out, _, ended = await harness.run(runtime, harness.plan("sh", "-c", "cat; echo done"))
        assert (out, ended.code) == ("done\n", 0)

    harness.play(scenario)


def test_input_stays_open_between_clients_without_stdin_once(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan("sh", "-c", "read a; read b; echo $a $b", open_stdin=True)
        process = await runtime.create(plan)
        first = await process.attach(stdin=True, stdout=False, stderr=False)
        await process.release()
        await first.write(b"one\n")
        await first.close()
        second = await process.attach(stdin=True, stdout=True, stderr=True)
        await second.write(b"two\n")
        assert split_frames(await read_all(second))[1] == b"one two\n"
        await second.close()
        await process.wait()

    harness.play(scenario)


def test_a_terminal_with_size_and_job_control(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        host = HostConfig(console_size=(33, 111))
        plan = harness.plan("sh", tty=True, open_stdin=True, host=host)
        process = await runtime.create(plan)
        stream = await process.attach(stdin=True, stdout=True, stderr=True)
        await process.release()
        await stream.write(b"tty; stty size; echo $TERM; test -c /dev/console; echo console=$?\n")
        text = await read_until(stream, b"console=0\r\n")
        assert b"/dev/pts/0" in text
        assert b"33 111" in text
        assert b"xterm" in text
        await process.resize(50, 120)
        await stream.write(b"stty size\n")
        await read_until(stream, b"50 120")
        await stream.write(b"sleep 50\n")
        await asyncio.sleep(0.1)
        await stream.write(b"\x03")
        await stream.write(b"exit 4\n")
        await read_all(stream)
        assert (await process.wait()).code == 4
        await stream.close()

    harness.play(scenario)


def test_the_log_is_dockers_json_with_long_lines_in_parts(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        script = (
            "echo first; echo second >&2; head -c 40000 /dev/zero | tr '\\0' a; echo;"
            " printf '\\377\"\\\\\\t'; printf unfinished"
        )
        plan = harness.plan("sh", "-c", script, log=True)
        await harness.run(runtime, plan)
        entries = [json.loads(line) for line in harness.log_path(plan.key).read_text().splitlines()]
        outs = [entry["log"] for entry in entries if entry["stream"] == "stdout"]
        assert outs[0] == "first\n"
        assert [len(text) for text in outs[1:4]] == [16384, 16384, 40000 - 2 * 16384 + 1]
        assert outs[3].endswith("\n")
        assert outs[4] == '\ufffd"\\\tunfinished'
        assert [e["log"] for e in entries if e["stream"] == "stderr"] == ["second\n"]
        parts = [e["time"] for e in entries if e["log"].startswith("aaa")]
        assert len(set(parts)) == 1
        assert all(len(e["time"]) == 30 and e["time"].endswith("Z") for e in entries)

    harness.play(scenario)


def test_the_log_rotates(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        config = {"max-size": "20k", "max-file": "3"}
        host = HostConfig(log_config=LogConfig(type="json-file", config=config))
        script = "for i in $(seq 1 40); do seq 1 100; sleep 0.005; done"
        plan = harness.plan("sh", "-c", script, log=True, host=host)
        await harness.run(runtime, plan)
        path = harness.log_path(plan.key)
        files = sorted(p.name for p in path.parent.glob("*-json.log*"))
        assert files == [path.name, f"{path.name}.1", f"{path.name}.2"]
        for name in files:
            for line in (path.parent / name).read_text().splitlines():
                json.loads(line)

    harness.play(scenario)


def test_a_slow_client_gets_everything_and_so_does_the_log(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan("seq", "1", "400000", log=True)
        process = await runtime.create(plan)
        stream = await process.attach(stdin=False, stdout=True, stderr=True)
        state = json.loads(Path(runtime.exec_root.process(plan.key), "state.json").read_text())
        await process.release()
        await asyncio.sleep(0.3)
        # The monitor keeps a bounded amount for the client that does not read.
        assert private_bytes(state["monitor_pid"]) < 10_000_000
        wanted = "".join(f"{n}\n" for n in range(1, 400001))
        assert split_frames(await read_all(stream))[1].decode() == wanted
        await process.wait()
        await stream.close()
        logged = "".join(
            json.loads(line)["log"] for line in harness.log_path(plan.key).read_text().splitlines()
        )
        assert logged == wanted

    harness.play(scenario)


def test_a_client_that_leaves_does_not_hold_the_program_up(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan("seq", "1", "300000", log=True)
        process = await runtime.create(plan)
        stream = await process.attach(stdin=False, stdout=True, stderr=True)
        await process.release()
        await stream.read()
        await stream.close()
        assert (await process.wait()).code == 0
        with harness.log_path(plan.key).open() as file:
            assert sum(1 for _ in file) == 300000

    harness.play(scenario)


def test_a_discarded_process_leaves_nothing(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan("true")
        process = await runtime.create(plan)
        assert Path(f"/proc/{process.pid}").exists()
        await process.discard()
        await process.discard()
        assert not Path(f"/proc/{process.pid}").exists()
        assert not Path(runtime.exec_root.process(plan.key)).exists()
        assert runtime.get(plan.key) is None

    harness.play(scenario)


def test_a_container_can_be_started_again_under_its_id(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plan = harness.plan("sh", "-c", "cat /kept 2>/dev/null; echo again > /kept")
        first, _, _ = await harness.run(runtime, plan)
        second, _, _ = await harness.run(runtime, plan)
        assert (first, second) == ("", "again\n")

    harness.play(scenario)


def test_attaching_after_the_end_is_a_conflict(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        process = await runtime.create(harness.plan("true"))
        await process.release()
        await process.wait()
        with pytest.raises(Conflict):
            await process.attach(stdin=False, stdout=True, stderr=True)

    harness.play(scenario)


def test_the_dead_engine_loses_no_container_and_no_line(harness: Harness) -> None:
    script = (
        "end=; trap 'end=1' USR1; i=0;"
        " until [ $end ]; do echo line $i; i=$((i+1)); usleep 5000; done; exit 9"
    )
    plan = harness.plan("sh", "-c", script, log=True)

    async def first_engine(runtime: LauncherRuntime) -> int:
        process = await runtime.create(plan)
        await process.release()
        while not harness.log_path(plan.key).exists():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        return process.pid

    pid = harness.play(first_engine)
    assert Path(f"/proc/{pid}").exists()
    size = harness.log_path(plan.key).stat().st_size
    until(lambda: harness.log_path(plan.key).stat().st_size > size)

    async def second_engine(runtime: LauncherRuntime) -> None:
        found = await runtime.reconcile()
        assert [(monitor.key, monitor.pid, monitor.exit) for monitor in found] == [
            (plan.key, pid, None)
        ]
        process = runtime.get(plan.key)
        assert process is not None
        stream = await process.attach(stdin=False, stdout=True, stderr=True)
        assert b"line" in await stream.read()
        await stream.close()
        await process.signal(signal.SIGUSR1)
        assert (await process.wait()).code == 9
        logged = [
            json.loads(line)["log"] for line in harness.log_path(plan.key).read_text().splitlines()
        ]
        assert logged == [f"line {n}\n" for n in range(len(logged))]
        await runtime.forget(plan.key)

    harness.play(second_engine)


def test_an_exit_while_no_engine_runs_is_on_record(harness: Harness) -> None:
    plan = harness.plan("sh", "-c", "sleep 0.2; exit 5")

    async def first_engine(runtime: LauncherRuntime) -> Path:
        process = await runtime.create(plan)
        await process.release()
        return Path(runtime.exec_root.exit_record(plan.key))

    record = harness.play(first_engine)
    until(record.exists)

    async def second_engine(runtime: LauncherRuntime) -> None:
        (found,) = await runtime.reconcile()
        assert found.exit is not None
        assert found.exit.code == 5
        await runtime.forget(plan.key)
        assert await runtime.reconcile() == []

    harness.play(second_engine)


def test_a_killed_monitor_is_reported_as_lost(harness: Harness) -> None:
    plan = harness.plan("sleep", "60")

    async def first_engine(runtime: LauncherRuntime) -> tuple[int, int]:
        process = await runtime.create(plan)
        await process.release()
        state = json.loads(Path(runtime.exec_root.process(plan.key), "state.json").read_text())
        return state["monitor_pid"], process.pid

    monitor, pid = harness.play(first_engine)
    os.kill(monitor, signal.SIGKILL)
    until(lambda: gone(monitor) and gone(pid))

    async def second_engine(runtime: LauncherRuntime) -> None:
        (found,) = await runtime.reconcile()
        assert found.exit is not None
        assert found.exit.code == 137
        assert "monitor" in found.exit.error
        harness.resources.remove(plan.key)
        await runtime.forget(plan.key)

    harness.play(second_engine)


def test_a_held_process_is_given_up_when_its_engine_dies(harness: Harness) -> None:
    plan = harness.plan("true")

    async def first_engine(runtime: LauncherRuntime) -> int:
        return (await runtime.create(plan)).pid

    pid = harness.play(first_engine)
    until(lambda: gone(pid))


def test_monitor_and_launcher_are_small(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        process = await runtime.create(harness.plan("sleep", "60", log=True))
        await process.release()
        await asyncio.sleep(0.1)
        state = json.loads(Path(runtime.exec_root.process(process.key), "state.json").read_text())
        monitor = private_bytes(state["monitor_pid"])
        print(f"monitor {monitor} bytes, launcher {private_bytes(harness.launcher_pid)} bytes")
        assert monitor < 6_000_000
        assert private_bytes(harness.launcher_pid) < 16_000_000
        await process.signal(signal.SIGKILL)
        await process.wait()

    harness.play(scenario)


def test_an_unknown_job_and_a_broken_job_answer(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        with pytest.raises(InvalidArgument, match="no job named"):
            await runtime.run_job("make-coffee", {}, [])
        with pytest.raises(DeskdError):
            await runtime.run_job("netlink", {"pid": 0}, [])

    harness.play(scenario)


def test_the_netlink_job_changes_a_containers_network(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        from deskd.kernel.rtnetlink_raw import loopback_up

        down = bytearray(loopback_up())
        down[24:28] = b"\0\0\0\0"  # ifi_flags: no IFF_UP
        process = await runtime.create(harness.plan("sleep", "60"))
        await process.release()
        await runtime.run_job("netlink", {"pid": process.pid, "inside": [bytes(down).hex()]}, [])
        plan = harness.exec_plan(process, "ip", "link", "show", "lo")
        out, _, _ = await harness.run(runtime, plan)
        assert "UP" not in out.split(">")[0]
        await process.signal(signal.SIGKILL)
        await process.wait()

    harness.play(scenario)


def test_many_processes_at_once(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        plans = [harness.plan("sh", "-c", f"echo {n}; exit {n}", log=True) for n in range(12)]
        results = await asyncio.gather(*(harness.run(runtime, plan) for plan in plans))
        assert [(out, ended.code) for out, _, ended in results] == [
            (f"{n}\n", n) for n in range(12)
        ]

    harness.play(scenario)


def test_a_cancelled_start_leaves_nothing_and_harms_no_other(harness: Harness) -> None:
    """Cancelled wherever it waits: in each of the loop's first turns, and at some moments later."""

    async def after_turns(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)

    async def scenario(runtime: LauncherRuntime) -> None:
        await harness.run(runtime, harness.plan("true"))  # the filter is compiled
        big = ["X=" + "y" * 60_000 for _ in range(8)]
        moments = [after_turns(number) for number in range(16)]
        moments += [asyncio.sleep(delay_s) for delay_s in (0.001, 0.004, 0.01)]
        for moment in moments:
            plan = harness.plan(
                "true", env=[f"{item[0]}{n}{item[1:]}" for n, item in enumerate(big)]
            )
            starting = asyncio.create_task(runtime.create(plan))
            await moment
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                process = await starting
                await process.discard()
        out, _, _ = await harness.run(runtime, harness.plan("echo", "fine"))
        assert out == "fine\n"
        processes = Path(runtime.exec_root.processes)
        for _ in range(3000):
            if not list(processes.iterdir()):
                break
            await asyncio.sleep(0.02)
        assert list(processes.iterdir()) == []

    harness.play(scenario)


def spare_monitors(launcher: int) -> list[int]:
    """List the launcher's children that wait for an order."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            text = path.read_text()
            parent = int(text[text.rindex(")") + 2 :].split()[1])
            if parent == launcher and "(desk-spare)" in text:
                found.append(int(path.parent.name))
    return found


def test_a_spare_monitor_waits_and_may_be_killed(harness: Harness) -> None:
    async def scenario(runtime: LauncherRuntime) -> None:
        for _ in range(2):
            spares: list[int] = []
            for _ in range(3000):
                spares = spare_monitors(harness.launcher_pid)
                if spares:
                    break
                await asyncio.sleep(0.02)
            assert len(spares) == 1
            os.kill(spares[0], signal.SIGKILL)
            while not gone(spares[0]):  # noqa: ASYNC110 - there is nothing to be told by
                await asyncio.sleep(0.01)
            out, _, _ = await harness.run(runtime, harness.plan("echo", "fine"))
            assert out == "fine\n"

    harness.play(scenario)
