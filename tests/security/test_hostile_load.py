"""Containers that take all they can get: the machine, the engine and other containers go on."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine_process import API, Api, EngineProcess, running_engine

pytestmark = pytest.mark.root


def processes_of(container: str) -> list[int]:
    """List the processes of a container's cgroup, as the machine sees them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if container in (entry / "cgroup").read_text():
                    found.append(int(entry.name))
    return found


def children_in_state(parent: int, state: str) -> int:
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                text = (entry / "stat").read_text()
                fields = text[text.rindex(")") + 2 :].split()
                count += fields[0] == state and int(fields[1]) == parent
    return count


def until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.05)


def test_fork_bomb_meets_the_pids_limit(api: Api) -> None:
    limit = 40
    bomb = "bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done"
    container = api.run("sh", "-c", bomb, HostConfig={"PidsLimit": limit, "NanoCpus": 500_000_000})
    until(lambda: len(processes_of(container)) > 1, "the bomb to go off")
    peak = 0
    for _ in range(10):
        peak = max(peak, len(processes_of(container)))
        time.sleep(0.05)
    assert 1 < peak <= limit
    assert api.output("echo", "well").strip() == "well"
    api.delete(f"/containers/{container}", force=True)
    assert processes_of(container) == []


def test_memory_bomb_dies_alone(api: Api) -> None:
    neighbour = api.run("sleep", "60")
    host = {"Memory": 16 * 1024 * 1024, "MemorySwap": 16 * 1024 * 1024}
    bomb = api.run("tail", "/dev/zero", HostConfig=host)
    assert api.wait(bomb) == 137
    assert api.inspect(bomb)["State"]["OOMKilled"]
    assert api.inspect(neighbour)["State"]["Running"]
    assert not api.inspect(neighbour)["State"]["OOMKilled"]


def test_disk_filling_logs_stay_within_their_bounds(engine: EngineProcess, api: Api) -> None:
    size, count = 2 * 1024 * 1024, 3
    options = {"max-size": "2m", "max-file": str(count)}
    log = {"LogConfig": {"Type": "json-file", "Config": options}}
    container = api.run("sh", "-c", "yes line | head -n 400000", HostConfig=log)
    peak = 0
    files = engine.data_root / "containers" / container
    while api.inspect(container)["State"]["Running"]:
        with contextlib.suppress(FileNotFoundError):  # renamed in between
            peak = max(peak, sum(path.stat().st_size for path in files.glob("*json.log*")))
        time.sleep(0.02)
    logs = list(files.glob("*json.log*"))
    peak = max(peak, sum(path.stat().st_size for path in logs))
    assert len(logs) == count, logs
    # A file is full with the line that reaches its size.
    assert size < peak <= count * (size + 200), [(path.name, path.stat().st_size) for path in logs]
    assert api.logs(container, tail=1) == b"line\n"


@pytest.fixture
def small_disk_engine(tmp_path: Path) -> Iterator[EngineProcess]:
    """An engine whose data root has 24 MB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=True)
    try:
        with running_engine("--data-root", str(place)) as engine:
            yield engine
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_logs_on_a_full_disk_stop_nobody(small_disk_engine: EngineProcess) -> None:
    api = small_disk_engine.api
    container = api.run("sh", "-c", "yes line | head -c 10000000; echo the end >&2")
    assert api.wait(container) == 0  # the program is not held up by a log that cannot be written
    error = api.error("POST", "/containers/create", {"Image": "nosuch"})
    assert error.status == 404
    assert api.get("/containers/json", all=True)[0]["State"] == "exited"
    api.delete(f"/containers/{container}", force=True)
    assert api.output("echo", "room again") == "room again\n"


def test_pid_1_that_ignores_sigterm_is_killed_in_time(api: Api) -> None:
    container = api.run("sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done")
    time.sleep(0.2)
    began = time.monotonic()
    api.post(f"/containers/{container}/stop", t=1)
    assert time.monotonic() - began > 0.9
    state = api.inspect(container)["State"]
    assert (state["Running"], state["ExitCode"]) == (False, 137)


@pytest.mark.parametrize("init", [False, True])
def test_zombies_are_the_containers_own(api: Api, init: bool) -> None:
    orphans = 30
    make = "for i in $(seq 30); do (sleep 1 & ); done; exec sleep 60"
    container = api.run("sh", "-c", make, HostConfig={"Init": init})
    pid = api.inspect(container)["State"]["Pid"]
    if init:
        until(lambda: len(processes_of(container)) == 2, "an init that reaps all orphans")
    else:
        until(lambda: children_in_state(pid, "Z") == orphans, "orphans that nobody reaps")
    api.delete(f"/containers/{container}", force=True)
    assert processes_of(container) == []


def test_container_deleted_while_everything_else_happens_to_it(
    engine: EngineProcess, api: Api
) -> None:
    """No request hangs, none is answered with 500, and the engine knows the container no more."""
    program = "trap 'exit 0' TERM; while :; do echo a line; sleep 0.01; done"
    for round_ in range(3):
        container = api.run("sh", "-c", program, name=f"victim{round_}")
        answers: list[tuple[str, int, bytes]] = []
        going_on = threading.Event()
        going_on.set()
        threads = [
            threading.Thread(
                target=hammer, name=call, args=(api, container, call, going_on, answers)
            )
            for call in CALLS
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        removals = [remove(api, container)]
        while removals[-1] == 409 and len(removals) < 20:  # it was started again in between
            removals.append(remove(api, container))
        going_on.clear()
        if removals[-1] == 409:
            removals.append(remove(api, container))
        for thread in threads:
            thread.join(timeout=60)
        assert [thread.name for thread in threads if thread.is_alive()] == []
        assert removals[-1] == 204, removals
        failed = [answer for answer in answers if answer[1] >= 500]
        assert not failed, (failed[:3], engine.log())
        assert api.get("/containers/json", all=True) == []
        assert processes_of(container) == []
        assert not (engine.data_root / "containers" / container).exists()
    assert api.output("echo", "well") == "well\n"


def remove(api: Api, container: str) -> int:
    return api.raw("DELETE", f"{API}/containers/{container}?force=1")[0]


CALLS = (
    "GET /json",
    "GET /json?size=1",
    "GET /logs?stdout=1&follow=1",
    "GET /logs?stdout=1&tail=5",
    "GET /stats?stream=0&one-shot=1",
    "GET /stats",
    "GET /top",
    "GET /changes",
    "GET /archive?path=/etc",
    "GET /export",
    "POST /attach?stream=1&stdout=1",
    "POST /wait",
    "POST /wait?condition=removed",
    "POST /rename?name=other",
    "POST /pause",
    "POST /unpause",
    "POST /stop?t=0",
    "POST /start",
    "POST /restart?t=0",
    "POST /kill",
    "POST /resize?h=20&w=20",
    "POST /update",
    "POST /exec",
)


def hammer(
    api: Api,
    container: str,
    call: str,
    going_on: threading.Event,
    answers: list[tuple[str, int, bytes]],
) -> None:
    """Make a call again and again; a stream may break off, a request may not be left waiting."""
    method, path = call.split()
    headers = {"Content-Type": "application/json"}
    body = b'{"Cmd": ["true"], "AttachStdout": true}' if path == "/exec" else b"{}"
    while going_on.is_set():
        try:
            target = f"{API}/containers/{container}{path}"
            status, _, answer = api.raw(method, target, body, headers, timeout_s=15)
            answers.append((call, status, answer[:300]))
            if path == "/exec" and status == 201:
                number = answer.decode().split('"')[3]
                start = api.raw("POST", f"{API}/exec/{number}/start", b'{"Detach": true}', headers)
                answers.append(("exec start", start[0], start[2][:300]))
        except (http.client.IncompleteRead, ConnectionResetError):
            answers.append((call, 0, b"broken off"))
        except TimeoutError:
            answers.append((call, 599, b"no answer"))
        if answers[-1][1] == 404:
            return
