"""Containers over the Engine API: creation, life, listing, logs, files, limits."""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile
import time
from pathlib import Path

import pytest

from tests.engine_process import (
    API,
    IMAGE,
    Api,
    EngineProcess,
    Hijacked,
    UnixConnection,
    frames,
)

pytestmark = pytest.mark.root

AUTO_REMOVE = {"AutoRemove": True}


def test_run_to_the_end_records_code_and_times(api: Api) -> None:
    container = api.run("sh", "-c", "echo out; echo err >&2; exit 7")
    assert api.wait(container) == 7
    state = api.inspect(container)["State"]
    assert (state["Status"], state["ExitCode"], state["Running"]) == ("exited", 7, False)
    assert state["StartedAt"] < state["FinishedAt"]
    raw = api.get(f"/containers/{container}/logs", stdout=True, stderr=True)
    assert sorted(frames(raw)) == [(1, b"out\n"), (2, b"err\n")]
    assert api.logs(container, stdout=0) == b"err\n"


def test_names_conflict_and_are_free_after_removal(api: Api) -> None:
    first = api.create("true", name="taken")
    error = api.error("POST", "/containers/create", {"Image": IMAGE, "Cmd": ["true"]}, name="taken")
    assert error.status == 409
    assert error.message == (
        f'Conflict. The container name "/taken" is already in use by container "{first}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
    api.delete(f"/containers/{first}")
    api.create("true", name="taken")
    random_name = api.inspect(api.create("true"))["Name"]
    assert re.fullmatch(r"/[a-z]+_[a-z]+\d*", random_name)
    assert api.error("POST", "/containers/create", {"Image": IMAGE}, name="../x").status == 400


def test_lookup_by_prefix_and_name(api: Api) -> None:
    container = api.create("true", name="findme")
    assert api.inspect(container[:6])["Id"] == container
    assert api.inspect("findme")["Id"] == container
    error = api.error("GET", "/containers/nothing/json")
    assert (error.status, error.message) == (404, "No such container: nothing")


def test_image_configuration_is_merged(api: Api) -> None:
    container = api.create(Env=["A=1"], Labels={"own": "label"}, WorkingDir="/tmp")
    config = api.inspect(container)["Config"]
    assert config["Cmd"] == ["sh"]
    assert config["Env"] == ["A=1"]
    assert config["Labels"] == {"own": "label"}
    assert config["Hostname"] == container[:12]
    assert api.inspect(container)["Path"] == "sh"


def test_environment_directory_user_and_host_name_inside(api: Api) -> None:
    text = api.output(
        "sh",
        "-c",
        "echo $A; pwd; id -u; hostname; cat /etc/hostname",
        Env=["A=b c"],
        WorkingDir="/tmp",
        User="nobody",
        Hostname="box",
    )
    assert text.splitlines() == ["b c", "/tmp", "99", "box", "box"]


def test_start_twice_stop_twice(api: Api) -> None:
    container = api.run("sleep", "60")
    assert api.raw("POST", f"/containers/{container}/start")[0] == 304
    api.post(f"/containers/{container}/stop", t=0)
    assert api.inspect(container)["State"]["ExitCode"] == 137
    assert api.raw("POST", f"/containers/{container}/stop")[0] == 304


def test_stop_sends_the_containers_own_signal(api: Api) -> None:
    script = "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
    container = api.run("sh", "-c", script, StopSignal="SIGUSR1")
    _until(lambda: b"ready" in api.logs(container))
    api.post(f"/containers/{container}/stop", t=10)
    assert api.inspect(container)["State"]["ExitCode"] == 3
    assert b"got" in api.logs(container)


def test_kill_by_name_and_number(api: Api) -> None:
    for signal, code in (("SIGTERM", 143), ("9", 137), ("int", 130)):
        script = "trap - TERM INT; exec sleep 60"
        container = api.run("sh", "-c", script, HostConfig={"Init": False})
        if code == 137:
            api.post(f"/containers/{container}/kill", signal=signal)
            assert api.wait(container) == code
        else:
            # A first process ignores signals without a handler, as in every PID namespace.
            api.post(f"/containers/{container}/kill", signal=signal)
            assert api.inspect(container)["State"]["Running"] is True
            api.post(f"/containers/{container}/kill")
    assert api.error("POST", f"/containers/{container}/kill").status == 409
    other = api.run("sleep", "60")
    error = api.error("POST", f"/containers/{other}/kill", signal="NONSENSE")
    assert error.status == 400
    assert error.message == f"cannot kill container: {other}: invalid signal: NONSENSE"
    error = api.error("POST", f"/containers/{other}/kill", signal="99")
    assert error.status == 400
    assert error.message.endswith(": the linux daemon does not support signal 99")


def test_restart_keeps_auto_removed_container(api: Api) -> None:
    container = api.run("sleep", "60", HostConfig={"AutoRemove": True})
    before = api.inspect(container)["State"]["Pid"]
    api.post(f"/containers/{container}/restart", t=0)
    assert api.inspect(container)["State"]["Pid"] not in (0, before)
    api.post(f"/containers/{container}/stop", t=0)
    _until(lambda: api.raw("GET", f"/containers/{container}/json")[0] == 404)


def test_pause_freezes_and_unpause_goes_on(api: Api) -> None:
    container = api.run("sh", "-c", "while :; do echo tick; sleep 0.02; done")
    _until(lambda: b"tick" in api.logs(container))
    api.post(f"/containers/{container}/pause")
    state = api.inspect(container)["State"]
    assert (state["Status"], state["Paused"], state["Running"]) == ("paused", True, True)
    size = 0

    def stands_still() -> bool:
        nonlocal size
        before, size = size, len(api.logs(container))
        time.sleep(0.2)
        return before == size

    _until(stands_still)  # what was on its way when the pause came
    assert api.error("POST", f"/containers/{container}/pause").status == 409
    assert api.error("POST", f"/containers/{container}/start").status == 409
    api.post(f"/containers/{container}/unpause")
    _until(lambda: len(api.logs(container)) > size)
    assert api.error("POST", f"/containers/{container}/unpause").status == 409
    api.post(f"/containers/{container}/kill")
    error = api.error("POST", f"/containers/{container}/pause")
    assert (error.status, error.message) == (409, f"container {container} is not running")


def test_rename(api: Api) -> None:
    container = api.create("true", name="before")
    api.post("/containers/before/rename", name="after")
    assert api.inspect("after")["Id"] == container
    assert api.error("GET", "/containers/before/json").status == 404
    api.create("true", name="other")
    assert api.error("POST", "/containers/after/rename", name="other").status == 409
    assert api.error("POST", "/containers/after/rename", name="").status == 400
    error = api.error("POST", "/containers/after/rename", name="not good")
    assert error.message.startswith("Error when allocating new name: Invalid container name (")


def test_remove_refuses_running_without_force(api: Api) -> None:
    container = api.run("sleep", "60")
    error = api.error("DELETE", f"/containers/{container}")
    assert error.status == 409
    assert "container is running: stop the container before removing or force remove" in (
        error.message
    )
    api.delete(f"/containers/{container}", force=True)
    assert api.error("GET", f"/containers/{container}/json").status == 404


def test_wait_conditions(engine: EngineProcess, api: Api) -> None:
    created = api.create("true")
    assert api.wait(created) == 0
    container = api.run("sh", "-c", "read x; exit 4", OpenStdin=True, HostConfig=AUTO_REMOVE)
    connection = UnixConnection(engine.socket)
    connection.request("POST", f"{API}/containers/{container}/wait?condition=removed")
    answer = connection.getresponse()  # its head comes when the waiting has begun
    stream = Hijacked(engine.socket, f"/containers/{container}/attach?stream=1&stdin=1")
    stream.send(b"\n")
    assert json.loads(answer.read())["StatusCode"] == 4
    stream.close()
    connection.close()
    assert api.error("POST", f"/containers/{created}/wait", condition="never").status == 400


def test_unknown_program_is_not_found(api: Api) -> None:
    container = api.create("nosuchprogram")
    error = api.error("POST", f"/containers/{container}/start")
    assert error.status == 400
    assert 'exec: "nosuchprogram": executable file not found in $PATH' in error.message
    state = api.inspect(container)["State"]
    assert (state["Status"], state["ExitCode"]) == ("created", 127)
    assert "nosuchprogram" in state["Error"]
    directory = api.create("/etc")
    assert api.error("POST", f"/containers/{directory}/start").status == 400
    assert api.inspect(directory)["State"]["ExitCode"] == 126


def test_list_filters(api: Api) -> None:
    running = api.run("sleep", "60", name="runs", Labels={"a": "1", "b": "2"})
    ended = api.run("sh", "-c", "exit 3", name="ended", Labels={"a": "2"})
    api.wait(ended)
    created = api.create("true", name="created", HostConfig={"Binds": ["named:/data"]})

    def ids(**filters: list[str]) -> set[str]:
        found = api.get("/containers/json", all=True, filters=filters)
        return {item["Names"][0][1:] for item in found}

    assert [item["Id"] for item in api.get("/containers/json")] == [running]
    assert ids() == {"runs", "ended", "created"}
    assert ids(status=["exited"]) == {"ended"}
    assert ids(exited=["3"]) == {"ended"}
    assert ids(label=["a"]) == {"runs", "ended"}
    assert ids(label=["a=1", "b"]) == {"runs"}
    assert ids(name=["^cre"]) == {"created"}
    assert ids(id=[ended[:8]]) == {"ended"}
    assert ids(volume=["named"]) == {"created"}
    assert ids(volume=["/data"]) == {"created"}
    assert ids(ancestor=[IMAGE]) == {"runs", "ended", "created"}
    assert ids(ancestor=["nothing"]) == set()
    assert ids(before=[ended]) == {"runs"}
    assert ids(since=[ended]) == {"created"}
    assert ids(network=["bridge"]) == {"runs", "ended", "created"}
    assert len(api.get("/containers/json", limit=1)) == 1
    assert api.get("/containers/json", limit=1)[0]["Id"] == created
    assert api.error("GET", "/containers/json", filters={"nonsense": ["x"]}).status == 400
    assert api.error("GET", "/containers/json", filters={"status": ["x"]}).status == 400
    sized = api.get("/containers/json", all=True, size=True)[0]
    assert sized["SizeRootFs"] > 500_000


def test_ports_are_shown_and_reachable(engine: EngineProcess, api: Api) -> None:
    container = api.run(
        *("httpd", "-f", "-p", "80", "-h", "/etc"),
        ExposedPorts={"80/tcp": {}, "81/udp": {}},
        HostConfig={"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}},
    )
    ports = api.inspect(container)["NetworkSettings"]["Ports"]
    assert ports["81/udp"] is None
    port = ports["80/tcp"][0]["HostPort"]
    listed = api.get("/containers/json")[0]["Ports"]
    assert {"IP": "127.0.0.1", "PrivatePort": 80, "PublicPort": int(port), "Type": "tcp"} in listed
    assert {"PrivatePort": 81, "Type": "udp"} in listed
    found = api.get("/containers/json", filters={"publish": [port]})
    assert [item["Id"] for item in found] == [container]
    import subprocess

    fetch = [*engine.inside_network(), "busybox", "wget", "-qO-", f"http://127.0.0.1:{port}/passwd"]
    page = subprocess.run(fetch, capture_output=True, text=True, timeout=60)
    assert "root:x:0:0" in page.stdout


def test_busy_port_is_a_named_error(api: Api) -> None:
    bindings = {"80/tcp": [{"HostPort": "18080"}]}
    first = api.run("sleep", "60", HostConfig={"PortBindings": bindings})
    second = api.create("sleep", "60", HostConfig={"PortBindings": bindings})
    error = api.error("POST", f"/containers/{second}/start")
    assert error.status in (409, 500)
    assert "18080" in error.message
    assert api.inspect(second)["State"]["Status"] == "created"
    api.delete(f"/containers/{first}", force=True)
    api.post(f"/containers/{second}/start")


def test_logs_tail_since_timestamps_and_follow(api: Api) -> None:
    container = api.run(
        "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done; sleep 0.3; echo 4"
    )
    followed = api.logs(container, follow=True)
    assert followed == b"1\n2\n3\n4\n"
    assert api.logs(container, tail=2) == b"3\n4\n"
    assert api.logs(container, tail=0) == b""
    assert api.logs(container, tail="all") == followed
    stamped = api.logs(container, timestamps=True).decode().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z \d$", line) for line in stamped)
    last = stamped[-1].split()[0]
    assert api.logs(container, since=last) == b"4\n"
    assert api.logs(container, until=stamped[0].split()[0]) == b"1\n"
    error = api.error("GET", f"/containers/{container}/logs")
    assert (error.status, error.message) == (
        400,
        "Bad parameters: you must choose at least one stream",
    )


def test_rotated_log_is_read_and_followed_whole(api: Api) -> None:
    options = {"max-size": "20k", "max-file": "50"}
    container = api.run(
        "sh",
        "-c",
        "i=0; while [ $i -lt 3000 ]; do echo line-$i; i=$((i+1)); done",
        HostConfig={"LogConfig": {"Type": "json-file", "Config": options}},
    )
    expected = "".join(f"line-{number}\n" for number in range(3000)).encode()
    assert api.logs(container, follow=True) == expected
    assert api.logs(container) == expected
    assert api.logs(container, tail=1500) == expected[expected.index(b"line-1500\n") :]
    assert len(list(Path(api.inspect(container)["LogPath"]).parent.glob("*-json.log.*"))) >= 1


def test_attach_before_start_misses_nothing(engine: EngineProcess, api: Api) -> None:
    container = api.create("sh", "-c", "echo first; cat; echo last", OpenStdin=True, StdinOnce=True)
    stream = Hijacked(
        engine.socket, f"/containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1"
    )
    assert stream.status == 101
    assert "application/vnd.docker.multiplexed-stream" in stream.head
    api.post(f"/containers/{container}/start")
    stream.send(b"typed\n")
    stream.end_input()
    data = b"".join(part for _, part in frames(stream.read_all()))
    stream.close()
    assert data == b"first\ntyped\nlast\n"
    assert api.wait(container) == 0


def test_attach_without_upgrade_answers_200(engine: EngineProcess, api: Api) -> None:
    container = api.run("sh", "-c", "echo seen; read x; echo more", Tty=True, OpenStdin=True)
    _until(lambda: b"seen" in api.get(f"/containers/{container}/logs", stdout=True))
    target = f"/containers/{container}/attach?logs=1&stream=1&stdout=1"
    with api.events(filters={"container": [container], "event": ["attach"]}) as events:
        stream = Hijacked(engine.socket, target, upgrade=False)
        next(events)  # what was logged is on its way, what comes now follows
    assert stream.status == 200
    assert "application/vnd.docker.raw-stream" in stream.head
    typing = Hijacked(engine.socket, f"/containers/{container}/attach?stream=1&stdin=1")
    typing.send(b"\r")
    assert stream.read_all() == b"seen\r\n\r\nmore\r\n"  # the terminal shows the typed line
    stream.close()
    typing.close()


def test_detach_keys_leave_the_container_running(engine: EngineProcess, api: Api) -> None:
    container = api.run("cat", Tty=True, OpenStdin=True)
    target = f"/containers/{container}/attach?stream=1&stdin=1&stdout=1&detachKeys=ctrl-x,q"
    stream = Hijacked(engine.socket, target)
    stream.send(b"one\r")
    stream.read_until(b"one\r\n")
    stream.send(b"\x18q")
    stream.read_all()
    stream.close()
    assert api.inspect(container)["State"]["Running"] is True
    bad = api.error("POST", f"/containers/{container}/attach", detachKeys="ctrl-nonsense")
    assert bad.status == 400


def test_terminal_size(engine: EngineProcess, api: Api) -> None:
    container = api.run("sh", "-c", "read x; stty size", Tty=True, OpenStdin=True)
    api.post(f"/containers/{container}/resize", h=40, w=120)
    stream = Hijacked(engine.socket, f"/containers/{container}/attach?stream=1&stdin=1&stdout=1")
    stream.send(b"\r")
    stream.read_until(b"40 120")
    stream.read_all()
    stream.close()
    assert api.error("POST", f"/containers/{container}/resize", h="x", w=1).status == 400
    assert api.error("POST", f"/containers/{container}/resize", h=1, w=1).status == 409


def test_exec_output_code_and_inspect(engine: EngineProcess, api: Api) -> None:
    container = api.run("sleep", "60")
    document = {
        "Cmd": ["sh", "-c", "echo $X; cat; exit 5"],
        "Env": ["X=y"],
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
    }
    exec_id = api.post(f"/containers/{container}/exec", document)["Id"]
    assert api.get(f"/exec/{exec_id}/json")["Running"] is False
    stream = Hijacked(engine.socket, f"/exec/{exec_id}/start", {"Detach": False})
    stream.send(b"typed")
    stream.end_input()
    assert b"".join(part for _, part in frames(stream.read_all())) == b"y\ntyped"
    stream.close()
    found = api.get(f"/exec/{exec_id}/json")
    assert (found["Running"], found["ExitCode"], found["ContainerID"]) == (False, 5, container)
    assert found["ProcessConfig"]["entrypoint"] == "sh"
    assert api.inspect(container)["ExecIDs"] is None  # those that have not ended are listed
    assert found["DetachKeys"] == ""
    keys = {"DetachKeys": "ctrl-p,x"}
    waiting = api.post(f"/containers/{container}/exec", document | keys)["Id"]
    assert api.inspect(container)["ExecIDs"] == [waiting]
    assert base64.b64decode(api.get(f"/exec/{waiting}/json")["DetachKeys"]) == b"\x10x"
    assert api.error("POST", f"/exec/{exec_id}/start", {}).status == 409
    assert api.error("GET", "/exec/nothing/json").status == 404


def test_exec_of_unknown_program_and_of_stopped_container(engine: EngineProcess, api: Api) -> None:
    container = api.run("sleep", "60")
    document = {"Cmd": ["nosuch"], "AttachStdout": True}
    exec_id = api.post(f"/containers/{container}/exec", document)["Id"]
    stream = Hijacked(engine.socket, f"/exec/{exec_id}/start", {})
    text = (
        b"OCI runtime exec failed: exec failed: unable to start container process: "
        b'exec: "nosuch": executable file not found in $PATH\r\n'
    )
    assert frames(stream.read_all()) == [(1, text)]  # as Docker: on stdout
    stream.close()
    assert api.get(f"/exec/{exec_id}/json")["ExitCode"] == 127
    nowhere = api.post(
        f"/containers/{container}/exec", {**document, "Cmd": ["pwd"], "WorkingDir": "tmp"}
    )["Id"]
    error = api.error("POST", f"/exec/{nowhere}/start", {"Detach": True})
    assert (error.status, "Cwd must be an absolute path" in error.message) == (400, True)
    assert api.get(f"/exec/{nowhere}/json")["ExitCode"] == 126
    api.post(f"/containers/{container}/kill")
    error = api.error("POST", f"/containers/{container}/exec", document)
    assert (error.status, error.message) == (409, f"container {container} is not running")


def test_top_with_the_options_of_ps(api: Api) -> None:
    container = api.run("sh", "-c", "sleep 61 & wait")
    made = api.post(f"/containers/{container}/exec", {"Cmd": ["sleep", "62"], "User": "20:20"})
    api.post(f"/exec/{made['Id']}/start", {"Detach": True})

    def top(arguments: str) -> list[list[str]]:
        rows: list[list[str]] = api.get(f"/containers/{container}/top", ps_args=arguments)[
            "Processes"
        ]
        return rows

    _until(lambda: {"sleep 61", "sleep 62"} <= {row[-1] for row in top("axo pid,args")})
    pid = str(api.get(f"/exec/{made['Id']}/json")["Pid"])
    assert top("-u 20 -o pid,uid,args") == [[pid, "20", "sleep 62"]]
    assert top(f"-o pid=PID,comm -p {pid}") == [[pid, "sleep"]]
    assert [row[-1] for row in top("faux")] == [
        "\\_ sh -c sleep 61 & wait",
        "| \\_ sleep 61",
        "\\_ sleep 62",
    ]


def test_top_and_stats(api: Api) -> None:
    container = api.run("sh", "-c", "sleep 61 & sleep 62; wait")

    def commands() -> set[str]:
        return {row[-1] for row in api.get(f"/containers/{container}/top")["Processes"]}

    # A child is there before it has become its program.
    _until(lambda: {"sleep 61", "sleep 62"} <= commands())
    table = api.get(f"/containers/{container}/top")
    assert table["Titles"][-1] == "CMD"
    assert len(table["Processes"]) == 3
    chosen = api.get(f"/containers/{container}/top", ps_args="-o pid,comm")
    assert chosen["Titles"] == ["PID", "COMMAND"]
    assert api.error("GET", f"/containers/{container}/top", ps_args="--bad").status == 400
    stats = api.get(f"/containers/{container}/stats", **{"stream": False, "one-shot": True})
    assert stats["memory_stats"]["usage"] > 0
    assert stats["pids_stats"]["current"] == 3
    assert "eth0" in stats["networks"]
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert stats["id"] == container


def test_memory_limit_kills_and_tells(api: Api) -> None:
    container = api.run(
        *("sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1"),
        HostConfig={"Memory": 20 * 1024 * 1024, "MemorySwap": 20 * 1024 * 1024},
    )
    assert api.wait(container) == 137
    assert api.inspect(container)["State"]["OOMKilled"] is True


def test_update_changes_a_living_container(api: Api) -> None:
    container = api.run("sleep", "60")
    changes = {"Memory": 64 * 1024 * 1024, "MemorySwap": -1, "PidsLimit": 50}
    error = api.error("POST", f"/containers/{container}/update", {**changes, "MemorySwap": 0})
    assert (error.status, "update the memoryswap at the same time" in error.message) == (409, True)
    api.post(f"/containers/{container}/update", changes)
    host = api.inspect(container)["HostConfig"]
    assert (host["Memory"], host["PidsLimit"]) == (64 * 1024 * 1024, 50)
    stats = api.get(f"/containers/{container}/stats", **{"stream": False, "one-shot": True})
    assert stats["memory_stats"]["limit"] == 64 * 1024 * 1024
    error = api.error("POST", f"/containers/{container}/update", {"Memory": 1000})
    assert (error.status, error.message) == (400, "Minimum memory limit allowed is 6MB")
    api.post(f"/containers/{container}/update", {"NanoCpus": 500_000_000})
    error = api.error("POST", f"/containers/{container}/update", {"CpuQuota": 20000})
    assert error.message.startswith(f"Cannot update container {container}: Conflicting options")


def test_files_in_both_directions(api: Api) -> None:
    container = api.run("sleep", "60")
    for running in (True, False):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            entry = tarfile.TarInfo("dir/file")
            entry.size, entry.mode, entry.uid = 5, 0o640, 12
            tar.addfile(entry, io.BytesIO(b"hello"))
        target = f"/v1.47/containers/{container}/archive?path=/tmp"
        status, _, body = api.raw("PUT", target, buffer.getvalue())
        assert (status, body) == (200, b"")
        status, headers, data = api.raw(
            "GET", f"/v1.47/containers/{container}/archive?path=/tmp/dir/file"
        )
        assert status == 200
        facts = json.loads(base64.b64decode(headers["x-docker-container-path-stat"]))
        assert (facts["name"], facts["size"], facts["mode"]) == ("file", 5, 0o640)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            found = tar.getmember("file")
            assert (found.uid, found.mode) == (12, 0o640)
        head = api.raw("HEAD", f"/v1.47/containers/{container}/archive?path=/tmp")
        assert (head[0], head[2]) == (200, b"")
        assert api.raw("HEAD", f"/v1.47/containers/{container}/archive?path=/none")[0] == 404
        error = api.error("GET", f"/containers/{container}/archive?path=/none")
        assert error.status == 404
        assert "Could not find the file /none in container" in error.message
        if running:
            api.post(f"/containers/{container}/stop", t=0)
    changes = api.get(f"/containers/{container}/changes")
    assert {"Path": "/tmp/dir/file", "Kind": 1} in changes
    assert not any(change["Path"] == "/etc/hosts" for change in changes)
    exported = api.get(f"/containers/{container}/export")
    with tarfile.open(fileobj=io.BytesIO(exported)) as tar:
        assert "tmp/dir/file" in tar.getnames()


def test_volumes_bind_named_and_copied_up(api: Api, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from outside")
    binds = [f"{tmp_path}:/host:ro", "kept:/data", "filled:/etc"]
    text = api.output(
        *("sh", "-c", "cat /host/file; touch /host/x; echo 1 > /data/y; cat /etc/group; mount"),
        HostConfig={"Binds": binds},
    )
    assert "from outside" in text
    assert "Read-only file system" in text
    assert "root:x:0:" in text
    again = api.output("cat", "/data/y", HostConfig={"Binds": ["kept:/data"]})
    assert again == "1\n"
    volumes = {volume["Name"] for volume in api.get("/volumes")["Volumes"]}
    assert {"kept", "filled"} <= volumes
    assert api.error("DELETE", "/volumes/kept").status == 409
    missing = {"Type": "bind", "Source": "/no/such", "Target": "/x"}
    error = api.error(
        "POST", "/containers/create", {"Image": IMAGE, "HostConfig": {"Mounts": [missing]}}
    )
    assert (error.status, "bind source path does not exist: /no/such" in error.message) == (
        400,
        True,
    )


def test_anonymous_volumes_go_with_their_container(api: Api) -> None:
    container = api.run("sh", "-c", "echo 1 > /v/f", Volumes={"/v": {}})
    api.wait(container)
    name = api.inspect(container)["Mounts"][0]["Name"]
    assert api.get(f"/volumes/{name}")["Mountpoint"].endswith("/_data")
    api.delete(f"/containers/{container}", v=True)
    assert api.error("GET", f"/volumes/{name}").status == 404


def test_networks_connect_while_running(api: Api) -> None:
    network = api.post("/networks/create", {"Name": "second"})["Id"]
    container = api.run("sleep", "60")
    api.post(f"/networks/{network}/connect", {"Container": container})
    networks = api.inspect(container)["NetworkSettings"]["Networks"]
    assert set(networks) == {"bridge", "second"}
    assert container in api.get("/networks/second")["Containers"]
    assert api.error("DELETE", "/networks/second").status == 403
    api.post(f"/networks/{network}/disconnect", {"Container": container})
    assert set(api.inspect(container)["NetworkSettings"]["Networks"]) == {"bridge"}
    api.delete("/networks/second")


def test_restart_policies(api: Api) -> None:
    limited = api.run(
        "false",
        HostConfig={"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2}},
    )
    _until(lambda: api.inspect(limited)["RestartCount"] == 2)
    _until(lambda: api.inspect(limited)["State"]["Status"] == "exited")
    forever = api.run("false", HostConfig={"RestartPolicy": {"Name": "always"}})
    _until(lambda: api.inspect(forever)["RestartCount"] >= 2)
    api.post(f"/containers/{forever}/stop", t=0)
    count = api.inspect(forever)["RestartCount"]
    time.sleep(0.5)
    found = api.inspect(forever)
    assert (found["State"]["Status"], found["RestartCount"]) == ("exited", count)


def test_prune_removes_only_what_ended(api: Api) -> None:
    ended = api.run("true", Labels={"keep": "no"})
    api.wait(ended)
    running = api.run("sleep", "60")
    kept = api.create("true", Labels={"keep": "yes"})
    answer = api.post("/containers/prune", filters={"label!": ["keep=yes"]})
    assert answer["ContainersDeleted"] == [ended]
    assert {item["Id"] for item in api.get("/containers/json", all=True)} == {running, kept}


def test_sharing_namespaces_with_another_container(api: Api) -> None:
    first = api.run("sleep", "60")
    address = api.inspect(first)["NetworkSettings"]["IPAddress"]
    modes = {"NetworkMode": f"container:{first}", "PidMode": f"container:{first}"}
    text = api.output("sh", "-c", "ip addr; ps", HostConfig=modes)
    assert address in text
    assert "sleep 60" in text
    error = api.error(
        "POST",
        "/containers/create",
        {"Image": IMAGE, "HostConfig": {"NetworkMode": "container:none-such"}},
    )
    assert error.status == 400


def test_events_tell_the_whole_life(api: Api) -> None:
    with api.events(filters={"type": ["container"]}) as events:
        container = api.run("sh", "-c", "exit 2", name="told", Labels={"l": "v"})
        api.wait(container)
        api.delete(f"/containers/{container}")
        seen = []
        for event in events:
            seen.append(event)
            if event["Action"] == "destroy":
                break
    assert [event["Action"] for event in seen] == ["create", "start", "die", "destroy"]
    die = seen[2]
    assert die["Actor"]["Attributes"]["exitCode"] == "2"
    assert die["Actor"]["Attributes"]["l"] == "v"
    assert (die["status"], die["id"], die["from"], die["scope"]) == (
        "die",
        container,
        IMAGE,
        "local",
    )
    since, until = seen[0]["timeNano"] / 1e9 - 1, time.time() + 1
    raw = api.raw("GET", f"/events?since={since:.0f}&until={until:.0f}")[2]
    told = [json.loads(line) for line in raw.splitlines()]
    actions = [event["Action"] for event in told if event["Type"] == "container"]
    assert actions[-4:] == ["create", "start", "die", "destroy"]


def _until(condition: object, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
