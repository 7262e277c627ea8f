"""Killing the engine loses nothing: containers, logs, exit codes, attachments, policies."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from tests.engine_process import (
    IMAGE,
    EngineProcess,
    Hijacked,
    frames,
    run_docker,
    running_engine,
    until,
)

pytestmark = pytest.mark.root


def test_sigkill_of_the_engine_loses_no_container_and_no_line(own_engine: EngineProcess) -> None:
    api = own_engine.api
    counting = "i=0; while [ $i -lt 400 ]; do echo n$i; i=$((i+1)); sleep 0.005; done; exit 9"
    ends_while_away = api.run("sh", "-c", counting)
    script = "echo start; cat; echo end"
    lives_on = api.run("sh", "-c", script, OpenStdin=True, StdinOnce=True, name="lives")
    auto_removed = api.run("sleep", "600", HostConfig={"AutoRemove": True})
    killed_away = api.run("sleep", "600")
    everyone = (ends_while_away, lives_on, auto_removed, killed_away)
    pids = {name: api.inspect(name)["State"]["Pid"] for name in everyone}
    own_engine.kill()
    for pid in pids.values():
        os.kill(pid, 0)
    os.kill(pids[killed_away], 9)
    os.kill(pids[auto_removed], 9)
    ending = [Path(f"/proc/{pids[name]}") for name in (ends_while_away, killed_away, auto_removed)]
    until(lambda: not any(process.exists() for process in ending))
    own_engine.start()

    assert api.wait(ends_while_away) == 9
    assert api.inspect(ends_while_away)["State"]["Status"] == "exited"
    assert api.logs(ends_while_away) == "".join(f"n{i}\n" for i in range(400)).encode()
    assert api.wait(killed_away) == 137
    until(lambda: api.raw("GET", f"/containers/{auto_removed}/json")[0] == 404)

    state = api.inspect("lives")["State"]
    assert (state["Status"], state["Pid"]) == ("running", pids[lives_on])
    stream = Hijacked(own_engine.socket, "/containers/lives/attach?stream=1&stdin=1&stdout=1")
    stream.send(b"typed\n")
    stream.end_input()
    data = b"".join(part for _, part in frames(stream.read_all()))
    stream.close()
    assert data == b"typed\nend\n"
    assert api.wait("lives") == 0
    assert api.logs("lives") == b"start\ntyped\nend\n"


def test_exec_stop_and_ports_work_after_a_restart(own_engine: EngineProcess) -> None:
    api = own_engine.api
    ports = {"PortBindings": {"80/tcp": [{"HostPort": "8090"}]}}
    container = api.run("sleep", "600", HostConfig=ports)
    address = api.inspect(container)["NetworkSettings"]["IPAddress"]
    own_engine.kill()
    own_engine.start()
    assert api.inspect(container)["NetworkSettings"]["IPAddress"] == address
    assert api.inspect(container)["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"] == "8090"
    second = api.create("true", HostConfig=ports)
    assert "8090" in api.error("POST", f"/containers/{second}/start").message
    third = api.run("sleep", "600")
    assert api.inspect(third)["NetworkSettings"]["IPAddress"] != address
    exec_id = api.post(f"/containers/{container}/exec", {"Cmd": ["true"]})["Id"]
    stream = Hijacked(own_engine.socket, f"/exec/{exec_id}/start", {})
    stream.read_all()
    stream.close()
    assert api.get(f"/exec/{exec_id}/json")["ExitCode"] == 0
    api.post(f"/containers/{container}/stop", t=0)
    assert api.inspect(container)["State"]["ExitCode"] == 137


def test_restart_policies_are_carried_out_by_the_next_engine(own_engine: EngineProcess) -> None:
    api = own_engine.api
    always = api.run("sleep", "600", HostConfig={"RestartPolicy": {"Name": "always"}})
    unless = api.run("sleep", "600", HostConfig={"RestartPolicy": {"Name": "unless-stopped"}})
    stopped = api.run("sleep", "600", HostConfig={"RestartPolicy": {"Name": "unless-stopped"}})
    plain = api.run("sleep", "600")
    api.post(f"/containers/{stopped}/stop", t=0)
    pids = [api.inspect(name)["State"]["Pid"] for name in (always, unless, plain)]
    own_engine.kill()
    for pid in pids:
        os.kill(pid, 9)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    own_engine.start()
    until(lambda: all(api.inspect(name)["State"]["Running"] for name in (always, unless)))
    until(lambda: api.inspect(plain)["State"]["Status"] == "exited")
    assert api.inspect(stopped)["State"]["Status"] == "exited"


def test_sigkill_under_load_leaves_a_consistent_engine(own_engine: EngineProcess) -> None:
    """Clients create, start and remove while the engine is killed three times."""
    stop = threading.Event()
    made: list[str] = []

    def load() -> None:
        while not stop.is_set():
            try:
                container = own_engine.api.run("sh", "-c", "echo x; sleep 0.05")
                made.append(container)
                own_engine.api.wait(container)
                own_engine.api.delete(f"/containers/{container}", force=True)
            except Exception:  # noqa: BLE001 (the engine is being killed: anything may fail)
                time.sleep(0.02)

    threads = [threading.Thread(target=load, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for pause_s in (0.0, 0.01, 0.05):
        enough = len(made) + 10
        until(lambda: len(made) >= enough)  # noqa: B023 - called at once
        time.sleep(pause_s)
        own_engine.kill()
        own_engine.start()
    stop.set()
    for thread in threads:
        thread.join(60)
    api = own_engine.api
    for container in api.get("/containers/json", all=True):
        state = api.inspect(container["Id"])["State"]
        assert state["Status"] in ("created", "exited", "running"), state
        api.delete(f"/containers/{container['Id']}", force=True)
    containers = own_engine.data_root / "containers"
    until(lambda: not list(containers.iterdir()))
    assert api.output("echo", "works") == "works\n"


def test_attach_waits_through_the_name_of_a_restarted_engine(own_engine: EngineProcess) -> None:
    """Names, IDs and the engine's own ID are the same after a restart."""
    api = own_engine.api
    container = api.create("true", name="kept", Labels={"a": "b"})
    engine_id = api.get("/info")["ID"]
    own_engine.stop()
    own_engine.start()
    assert api.inspect("kept")["Id"] == container
    assert api.inspect("kept")["Config"]["Labels"] == {"a": "b"}
    assert api.get("/info")["ID"] == engine_id


def test_a_deep_exec_root_is_no_obstacle_to_attach_and_restart(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    socket = tmp_path / "s"
    with running_engine(
        "--exec-root", str(deep), "-H", f"unix://{socket}", socket=str(socket)
    ) as engine:
        done = run_docker(engine, "run", "-i", "--rm", IMAGE, "cat", stdin=b"carried")
        assert done.stdout == "carried", done.stderr
        run_docker(engine, "run", "-d", "--name", "deep", IMAGE, "sleep", "1000")
        engine.kill()
        engine.start()
        assert run_docker(engine, "exec", "deep", "echo", "found").stdout == "found\n"
        run_docker(engine, "rm", "-f", "deep")
