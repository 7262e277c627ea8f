"""The most memory that containers held: seen, kept beyond their end, and told before a start."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.cli_process import Cli
from tests.engine_process import Api, EngineProcess, until

pytestmark = pytest.mark.root

MIB = 1 << 20
HELD_MIB = 48
TMPFS = {"Tmpfs": {"/m": "size=64m"}}
FILL = f"dd if=/dev/zero of=/m/held bs=1M count={HELD_MIB} 2>&-"
WRITE = "dd if=/dev/zero of=/cached bs=1M count=32 2>&-"
MACHINE_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def fresh(name: str) -> str:
    """Return a name of which the shared engine remembers nothing."""
    return f"{name}-{secrets.token_hex(3)}"


def running(api: Api, name: str) -> dict[str, Any]:
    (found,) = [each for each in api.get("/desk/memory")["Containers"] if each["Name"] == name]
    return dict(found)


def ended(api: Api, **wanted: str) -> list[dict[str, Any]]:
    return [
        each
        for each in api.get("/desk/memory")["Ended"]
        if all(each[key] == value for key, value in wanted.items())
    ]


def assert_held(entry: dict[str, Any]) -> None:
    """It held what the script filled, and the kernel's own for it."""
    assert HELD_MIB * MIB <= entry["Peak"] < (HELD_MIB + 16) * MIB, entry
    assert entry["Peak"] <= entry["PeakUsage"], entry


def test_what_was_given_back_stays_the_peak_and_cache_does_not_count(api: Api) -> None:
    brief, cached = fresh("brief"), fresh("cached")
    api.run("sh", "-c", f"{FILL}; rm /m/held; sleep 600", name=brief, HostConfig=TMPFS)
    api.run("sh", "-c", f"{WRITE}; sleep 600", name=cached)
    until(lambda: running(api, brief)["Peak"] >= HELD_MIB * MIB)
    until(lambda: running(api, brief)["Held"] < 16 * MIB)
    assert_held(running(api, brief))
    until(lambda: running(api, cached)["PeakUsage"] >= 32 * MIB)
    found = running(api, cached)
    assert found["Peak"] < 16 * MIB
    assert (found["Runs"], found["FinishedNano"], found["Image"]) == (1, 0, "busybox")


def test_a_run_that_nobody_looked_at_is_known_by_its_end(api: Api) -> None:
    short, limit = fresh("short"), {**TMPFS, "Memory": 96 * MIB}
    container = api.run("sh", "-c", f"{FILL}; {WRITE}", name=short, HostConfig=limit)
    assert api.wait(container) == 0
    (found,) = ended(api, Name=short)
    assert_held(found)
    assert (found["Id"], found["Limit"], found["Runs"]) == (container, 96 * MIB, 1)
    assert 0 < found["StartedNano"] < found["FinishedNano"]
    api.post(f"/containers/{container}/start")
    api.wait(container)
    (found,) = ended(api, Name=short)
    assert found["Runs"] == 2
    assert_held(found)


def test_removed_containers_are_remembered_by_name_or_else_by_command(api: Api) -> None:
    named = fresh("named")
    for _ in range(2):
        api.wait(api.run("sh", "-c", FILL, name=named, HostConfig=TMPFS))
        api.delete(f"/containers/{named}")
    (found,) = ended(api, Name=named)
    assert_held(found)
    assert (found["Id"], found["Runs"]) == ("", 2)
    # One of the same name takes over what is known of it.
    api.create("true", name=named)
    assert ended(api, Name=named) == []
    api.post(f"/containers/{named}/start")
    api.wait(named)
    (found,) = ended(api, Name=named)
    assert found["Runs"] == 3
    assert_held(found)


def test_removed_containers_without_a_name_are_remembered_by_command(api: Api) -> None:
    def unnamed() -> list[dict[str, Any]]:
        return ended(api, Name="", Image="busybox")

    before = len(unnamed())
    large = ("sh", "-c", f"{FILL}; echo {fresh('unnamed')}")
    for command in (large, large, ("echo", fresh("small"))):
        container = api.run(*command, HostConfig=TMPFS)
        api.wait(container)
        api.delete(f"/containers/{container}")
    assert len(unnamed()) == before + 1
    newest = max(unnamed(), key=lambda each: each["FinishedNano"])
    assert newest["Runs"] == 2
    assert_held(newest)


@pytest.mark.parametrize("killed", [False, True])
def test_peaks_outlive_stop_removal_and_the_engine(
    own_engine: EngineProcess, *, killed: bool
) -> None:
    api = own_engine.api
    for name in ("stopped", "removed"):
        api.wait(api.run("sh", "-c", FILL, name=name, HostConfig=TMPFS))
    api.run("sh", "-c", f"{FILL}; rm /m/held; sleep 600", name="runs", HostConfig=TMPFS)
    until(lambda: running(api, "runs")["Peak"] >= HELD_MIB * MIB)
    until(lambda: running(api, "runs")["Held"] < 16 * MIB)
    api.delete("/containers/removed")
    if killed:
        until(lambda: _written(own_engine))
        own_engine.kill()
    else:
        own_engine.stop()
    own_engine.start()
    for name in ("stopped", "removed"):
        (found,) = ended(api, Name=name)
        assert_held(found)
        assert found["Runs"] == 1
    assert_held(running(api, "runs"))
    api.post("/containers/runs/kill")
    api.wait("runs")
    (found,) = ended(api, Name="runs")
    assert_held(found)


def _written(engine: EngineProcess) -> bool:
    """Whether the database has what was removed: an engine that is killed may lose a second."""
    log = Path(engine.data_root, "engine.db-wal")
    return log.exists() and b"busybox\nremoved" in log.read_bytes()


def test_an_end_that_an_engine_missed_is_observed_by_the_next(own_engine: EngineProcess) -> None:
    api = own_engine.api
    script = f"while [ ! -e /m/go ]; do sleep 0.05; done; {FILL}"
    container = api.run("sh", "-c", script, name="alone", HostConfig=TMPFS)
    pid = api.inspect(container)["State"]["Pid"]
    own_engine.kill()
    Path(f"/proc/{pid}/root/m/go").touch()
    until(lambda: not Path(f"/proc/{pid}").exists())
    own_engine.start()
    until(lambda: not api.inspect(container)["State"]["Running"])
    (found,) = ended(api, Name="alone")
    assert_held(found)


def warnings(api: Api, name: str | None = None, *command: str, **host: Any) -> list[str]:
    body = {"Image": "busybox", "Cmd": list(command) or ["true"], "HostConfig": host}
    found: list[str] = api.post("/containers/create", body, name=name)["Warnings"]
    return found


def start_header(api: Api, container: str) -> tuple[int, str]:
    status, headers, _ = api.raw("POST", f"/containers/{container}/start")
    return status, headers.get("desk-warning", "")


def test_what_cannot_fit_is_told_at_creation_and_start_and_refused_never(api: Api) -> None:
    assert warnings(api, "plain") == []
    assert start_header(api, "plain") == (204, "")
    assert warnings(api, "small", Memory=64 * MIB, MemoryReservation=32 * MIB) == []
    assert start_header(api, "small") == (204, "")
    (told,) = warnings(api, "wide", Memory=2 * MACHINE_BYTES)
    assert told.startswith("wide may use ")
    assert "but the machine's memory of " in told
    assert start_header(api, "wide") == (204, told)
    assert api.wait("wide") == 0
    (told,) = warnings(api, "greedy", MemoryReservation=MACHINE_BYTES)
    assert told.startswith("greedy reserves ")
    assert told.endswith("of the machine's memory are left: stop or limit other containers")
    status, header = start_header(api, "greedy")
    assert (status, header.split(", but ")[0]) == (204, told.split(", but ")[0])
    assert start_header(api, "missing")[0] == 404


def test_a_known_peak_that_fits_no_more_is_told(own_engine: EngineProcess) -> None:
    api = own_engine.api
    api.wait(api.run("sh", "-c", FILL, name="db", HostConfig=TMPFS))
    api.wait(api.run("sh", "-c", FILL, HostConfig=TMPFS))
    for container in api.get("/containers/json", all=True):
        api.delete(f"/containers/{container['Id']}")
    own_engine.stop()
    # No test may hold as much as this: what was observed is made larger.
    with contextlib.closing(sqlite3.connect(own_engine.data_root / "engine.db")) as database:
        change = "UPDATE peaks SET document = json_set(document, '$.peak.held_bytes', ?)"
        assert database.execute(change, (MACHINE_BYTES,)).rowcount == 2
        database.commit()
    own_engine.start()
    (told,) = warnings(api, "db", "sleep", "600")
    assert told.startswith("db has held up to ")
    (told,) = warnings(api, "other", "sh", "-c", FILL)
    assert told.startswith("containers of busybox with this command have held up to ")
    assert warnings(api, None, "sleep", "600") == []
    assert warnings(api, None, "sh", "-c", FILL, Memory=64 * MIB) == []  # its limit protects
    # What it holds in a run of its own counts, and of others of its command no more.
    api.post("/containers/other/start")
    api.wait("other")
    assert start_header(api, "other") == (204, "")


def test_both_clients_print_it_once(engine: EngineProcess, tmp_path: Path) -> None:
    desk = Cli(str(engine.socket), tmp_path)
    flags = ("--memory", str(2 * MACHINE_BYTES), "--memory-swap", "-1")
    words = ("run", "--name", "wide", *flags, "busybox", "echo", "ran")
    for client in (desk, desk.docker):
        done = client(*words)
        assert (done.code, done.out) == (0, "ran\n"), done
        lines = done.err.splitlines()
        assert len(lines) == 1, done
        assert lines[0].startswith("WARNING: wide may use ")
        if client is desk:
            for attach in ((), ("-a",)):
                done = desk("start", *attach, "wide")
                assert (done.code, done.err) == (0, f"{lines[0]}\n"), done
                engine.api.wait("wide")
        assert desk("rm", "wide").code == 0
    assert desk.ok("run", "--rm", "-m", "64m", "busybox", "echo", "fits") == "fits\n"
