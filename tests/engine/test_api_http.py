"""The HTTP side of the engine: versions, headers, bad requests, sockets, streams, start-up."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.engine_process import (
    API,
    IMAGE,
    REPOSITORY,
    Api,
    EngineProcess,
    Hijacked,
    UnixConnection,
    frames,
)

pytestmark = pytest.mark.root


def test_ping_tells_the_version(api: Api) -> None:
    for method, path in (("GET", "/_ping"), ("HEAD", "/_ping"), ("HEAD", "/v1.24/_ping")):
        status, headers, body = api.raw(method, path)
        assert status == 200
        assert body == (b"OK" if method == "GET" else b"")
        assert headers["api-version"] == "1.47"
        assert headers["ostype"] == "linux"
        assert headers["docker-experimental"] == "false"
        assert headers["builder-version"] == "1"
        assert headers["server"].startswith("Desk/")


def test_versions_out_of_range_are_refused_in_dockers_words(api: Api) -> None:
    status, _, body = api.raw("GET", "/v1.48/info")
    assert (status, json.loads(body)["message"]) == (
        400,
        "client version 1.48 is too new. Maximum supported API version is 1.47",
    )
    status, _, body = api.raw("GET", "/v1.12/info")
    assert status == 400
    assert json.loads(body)["message"].startswith(
        "client version 1.12 is too old. Minimum supported API version is 1.24"
    )


def test_unknown_pages(api: Api) -> None:
    for method, path in (("GET", "/nothing"), ("PUT", "/v1.47/info"), ("GET", "/v1.47/")):
        status, _, body = api.raw(method, path)
        assert (status, json.loads(body)) == (404, {"message": "page not found"})


def test_version_and_info(engine: EngineProcess, api: Api) -> None:
    version = api.get("/version")
    assert (version["ApiVersion"], version["MinAPIVersion"], version["Os"]) == (
        "1.47",
        "1.24",
        "linux",
    )
    assert [part["Name"] for part in version["Components"]] == ["Engine", "kernel"]
    assert version["KernelVersion"] == os.uname().release
    api.wait(api.run("true"))
    info = api.get("/info")
    assert (info["Containers"], info["ContainersStopped"], info["Images"]) == (1, 1, 1)
    assert info["DockerRootDir"] == str(engine.data_root)
    assert (info["Driver"], info["CgroupDriver"]) == ("overlay2", "cgroupfs")
    assert info["NCPU"] == len(os.sched_getaffinity(0))
    assert info["MemTotal"] > 0
    assert info["Swarm"]["LocalNodeState"] == "inactive"
    assert info["ID"] == api.get("/info")["ID"]
    usage = api.get("/system/df")
    assert usage["Images"][0]["Containers"] == 1
    assert len(usage["Containers"]) == 1
    error = api.error("GET", "/system/df", type="nothing")
    assert (error.status, error.message) == (400, "unknown object type: nothing")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", "invalid JSON"),
        (b"", "invalid JSON: got EOF while reading request body"),
        (b"[]", "invalid JSON"),
        (b'{"Image": 5}', "invalid JSON"),
        (b'{"Image": "busybox", "HostConfig": {"Memory": "much"}}', "invalid JSON"),
        (b'{"Image": "busybox", "HostConfig": {"Memory": -5}}', "Minimum memory limit"),
        (b'{"Image": "busybox", "HostConfig": {"Memory": 99999999999999999999}}', "invalid JSON"),
        (b'{"Image": "busybox", "Env": ["=x"]}', "invalid environment variable"),
        (b'{"Image": "busybox", "WorkingDir": "relative"}', "needs to be an absolute path"),
        (b'{"Image": "busybox", "HostConfig": {"Binds": ["a:b:c:d"]}}', "invalid volume spec"),
        (b'{"Image": "busybox", "HostConfig": {"Binds": ["/a:b"]}}', "must be absolute"),
        (b'{"Image": "busybox", "HostConfig": {"CapAdd": ["NONSENSE"]}}', "NONSENSE"),
        (b'{"Image": "busybox", "HostConfig": {"NanoCpus": 99000000000000}}', "Range of CPUs"),
        (b'{"Image": "busybox", "HostConfig": {"ShmSize": -1}}', "SHM size"),
        (b'{"Image": "busybox", "StopSignal": "SIGNONE"}', "invalid signal"),
        (
            b'{"Image": "busybox", "HostConfig": {"PortBindings": {"80/x": []}}}',
            "invalid proto",
        ),
        (
            b'{"Image": "busybox", "HostConfig": {"RestartPolicy": {"Name": "often"}}}',
            "unknown policy 'often'",
        ),
        (b"\xff\xfe", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
    ],
)
def test_bad_create_requests_get_a_sentence(api: Api, body: bytes, expected: str) -> None:
    headers = {"Content-Type": "application/json"}
    status, _, answer = api.raw("POST", f"{API}/containers/create", body, headers)
    assert (status, expected in json.loads(answer)["message"]) == (400, True), answer
    assert api.get("/containers/json", all=True) == []


def test_missing_image_and_wrong_content_type(api: Api) -> None:
    error = api.error("POST", "/containers/create", {"Image": "nosuch", "Cmd": ["true"]})
    assert (error.status, error.message) == (404, "No such image: nosuch:latest")
    headers = {"Content-Type": "text/plain"}
    status, _, body = api.raw("POST", f"{API}/containers/create", b"{}", headers)
    assert status == 400
    assert "unsupported Content-Type header (text/plain)" in json.loads(body)["message"]


def test_null_fields_are_zero_values_as_in_go(api: Api) -> None:
    document = {
        "Image": IMAGE,
        "Cmd": ["true"],
        "User": None,
        "Hostname": None,
        "Env": None,
        "ExposedPorts": {"80/tcp": None},
        "HostConfig": {"Binds": None, "Memory": None, "PortBindings": {"80/tcp": None}},
        "NetworkingConfig": None,
    }
    container = api.post("/containers/create", document)["Id"]
    assert api.inspect(container)["Config"]["ExposedPorts"] == {"80/tcp": {}}


def test_malformed_http_is_refused_and_the_engine_goes_on(engine: EngineProcess) -> None:
    for text in (
        b"NONSENSE\r\n\r\n",
        b"GET /info HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n",
        b"POST /info HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(engine.socket)
            with contextlib.suppress(BrokenPipeError):
                client.sendall(text)
            answer = client.recv(65536)
            assert re.match(rb"HTTP/1.1 (4\d\d|505) ", answer), (text[:60], answer)
    assert engine.api.raw("GET", "/_ping")[0] == 200


def test_one_connection_serves_many_requests(engine: EngineProcess) -> None:
    connection = UnixConnection(engine.socket)
    for _ in range(3):
        connection.request("GET", f"{API}/info")
        assert json.loads(connection.getresponse().read())["OSType"] == "linux"
        connection.request("GET", "/nothing")
        assert connection.getresponse().read()
        connection.request("POST", f"{API}/containers/none/start", b"unread body " * 1000)
        assert connection.getresponse().read()
    connection.close()


def test_pipelined_requests_are_answered_in_order(engine: EngineProcess) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(engine.socket)
        request = "GET /v1.47/containers/{}/json HTTP/1.1\r\nHost: a\r\n\r\n"
        client.sendall("".join(request.format(name) for name in ("one", "two")).encode())
        data = b""
        while data.count(b"No such container") < 2:
            data += client.recv(65536)
    assert data.index(b"container: one") < data.index(b"container: two")


def test_expect_continue(engine: EngineProcess) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(engine.socket)
        client.sendall(
            b"POST /v1.47/volumes/create HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json\r\nContent-Length: 14\r\n\r\n"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(b'{"Name": "ex"}')
        assert client.recv(100).startswith(b"HTTP/1.1 201 ")


def test_wait_sends_its_head_before_the_end(engine: EngineProcess, api: Api) -> None:
    container = api.create("sh", "-c", "exit 3")
    connection = UnixConnection(engine.socket)
    connection.request("POST", f"{API}/containers/{container}/wait?condition=next-exit")
    answer = connection.getresponse()  # returns as soon as the head is there
    api.post(f"/containers/{container}/start")
    assert json.loads(answer.read()) == {"StatusCode": 3}
    connection.close()


def test_a_leaving_client_ends_its_stream(engine: EngineProcess, api: Api) -> None:
    before = api.get("/info")["NEventsListener"]
    connection = UnixConnection(engine.socket)
    connection.request("GET", f"{API}/events")
    answer = connection.getresponse()
    assert api.get("/info")["NEventsListener"] == before + 1
    answer.close()
    connection.close()
    deadline = time.monotonic() + 60
    while api.get("/info")["NEventsListener"] != before:
        assert time.monotonic() < deadline, "the engine still serves a client that left"
        time.sleep(0.02)


def test_hundred_megabytes_through_attach(engine: EngineProcess, api: Api) -> None:
    size = 100 * 1024 * 1024
    container = api.create(
        "dd",
        "if=/dev/zero",
        "bs=1M",
        "count=100",
        HostConfig={"LogConfig": {"Type": "none"}},
    )
    stream = Hijacked(engine.socket, f"/containers/{container}/attach?stream=1&stdout=1")
    api.post(f"/containers/{container}/start")
    data = stream.read_all()
    stream.close()
    assert sum(len(part) for number, part in frames(data) if number == 1) == size
    assert api.error("GET", f"/containers/{container}/logs", stdout=True).status == 501


def test_many_clients_at_once(api: Api) -> None:
    failures: list[BaseException] = []

    def live(number: int) -> None:
        try:
            container = api.run("sh", "-c", f"echo {number}; exit {number}")
            assert api.wait(container) == number
            assert api.logs(container) == f"{number}\n".encode()
            api.delete(f"/containers/{container}", force=True)
        except BaseException as error:  # noqa: BLE001 (handed to the test's own thread)
            failures.append(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_concurrent_operations_on_one_container(engine: EngineProcess, api: Api) -> None:
    container = api.create("sleep", "60")
    statuses: list[int] = []

    def hit(path: str, method: str = "POST") -> None:
        statuses.append(api.raw(method, f"{API}/containers/{container}{path}")[0])

    for _ in range(5):
        paths = ["/start", "/stop?t=0", "/restart?t=0", "/pause", "/unpause", "/kill", "/json"]
        threads = [
            threading.Thread(target=hit, args=(path, "GET" if path == "/json" else "POST"))
            for path in paths
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(statuses) <= {200, 204, 304, 409}, engine.log()
    api.delete(f"/containers/{container}", force=True)


def test_swarm_and_build_say_what_they_are_not(api: Api) -> None:
    assert api.error("GET", "/swarm").status == 503
    assert "not a swarm manager" in api.error("GET", "/services").message
    assert api.error("POST", "/build").status == 501
    assert api.get("/plugins") == []


# --- the program --------------------------------------------------------------------------------


def test_second_engine_on_the_same_data_is_refused(engine: EngineProcess) -> None:
    assert engine.process is not None
    done = subprocess.run(engine.command(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "another engine (process " in done.stderr
    assert str(engine.data_root) in done.stderr
    assert engine.api.raw("GET", "/_ping")[0] == 200


def test_live_socket_of_another_engine_is_refused(engine: EngineProcess, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deskd", "--data-root", str(tmp_path / "data")]
    command += ["--exec-root", str(tmp_path / "run"), "-H", f"unix://{engine.socket}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY)
    assert done.returncode == 1
    assert f"another engine answers on {engine.socket}" in done.stderr
    assert engine.api.raw("GET", "/_ping")[0] == 200


def test_stale_socket_is_replaced_and_tcp_listens(own_engine: EngineProcess) -> None:
    own_engine.kill()
    assert Path(own_engine.socket).exists()
    own_engine.start()
    assert Path(own_engine.socket).stat().st_mode & 0o777 == 0o660
    own_engine.stop()
    assert not Path(own_engine.socket).exists()
    own_engine._flags = ("-H", f"unix://{own_engine.socket}", "-H", "tcp://127.0.0.1:2375")
    own_engine.start()
    fetch = own_engine.inside_network("busybox", "wget", "-qO-", "http://127.0.0.1:2375/_ping")
    done = subprocess.run(fetch, capture_output=True, timeout=60)
    assert done.stdout == b"OK"


def test_dial_stdio_joins_both_ways_with_half_close(engine: EngineProcess) -> None:
    command = [sys.executable, "-m", "deskd", "dial-stdio", "--host", f"unix://{engine.socket}"]
    request = b"GET /_ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    done = subprocess.run(command, input=request, capture_output=True, timeout=60, cwd=REPOSITORY)
    assert done.returncode == 0
    assert done.stdout.endswith(b"\r\n\r\nOK")
    missing = [*command[:-1], "unix:///nonexistent/engine.sock"]
    failed = subprocess.run(missing, input=b"", capture_output=True, timeout=60, cwd=REPOSITORY)
    assert failed.returncode == 1
    assert b"does not answer on /nonexistent/engine.sock" in failed.stderr


def test_dial_stdio_carries_a_hijacked_stream(engine: EngineProcess, api: Api) -> None:
    container = api.run("sh", "-c", "cat; echo end", OpenStdin=True, StdinOnce=True)
    command = [sys.executable, "-m", "deskd", "dial-stdio", f"--host=unix://{engine.socket}"]
    request = (
        f"POST {API}/containers/{container}/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\n"
        "Host: a\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    )
    done = subprocess.run(
        command, input=request.encode() + b"x" * 300_000, capture_output=True, timeout=60
    )
    head, _, data = done.stdout.partition(b"\r\n\r\n")
    assert b" 101 " in head
    assert b"".join(part for _, part in frames(data)) == b"x" * 300_000 + b"end\n"


def test_a_listening_engine_is_small_and_has_not_loaded_everything(
    own_engine: EngineProcess,
) -> None:
    assert own_engine.process is not None
    own_engine.api.get("/version")
    resident = 0
    for pid in own_engine._processes():
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
        assert found is not None
        resident += int(found[1])
    assert resident < 80 * 1024, f"the engine holds {resident} kB at rest"
    script = (
        "import sys; import deskd.compose, deskd.api.routes.system, deskd.network.service; "
        "import deskd.runtime.client; "
        "print(sorted(m for m in sys.modules if m in ('pyroute2', 'tarfile', 'ssl')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pyroute2" not in done.stdout, done.stdout + done.stderr


def test_graceful_end_keeps_containers_and_removes_pidfile(own_engine: EngineProcess) -> None:
    api = own_engine.api
    container = api.run("sleep", "60")
    pid = api.inspect(container)["State"]["Pid"]
    pidfile = own_engine.root / "run" / "engine.pid"
    assert own_engine.process is not None
    assert int(pidfile.read_text()) == own_engine.process.pid
    with contextlib.closing(UnixConnection(own_engine.socket)) as connection:
        connection.request("GET", f"{API}/events")
        connection.getresponse()
        own_engine.process.send_signal(signal.SIGTERM)
        assert own_engine.process.wait(60) == 0
    own_engine.process = None
    assert not pidfile.exists()
    os.kill(pid, 0)
    own_engine.start()
    assert api.inspect(container)["State"]["Pid"] == pid


def test_http_client_library_errors_do_not_leak_connections(engine: EngineProcess) -> None:
    for _ in range(50):
        connection = UnixConnection(engine.socket)
        connection.request("POST", f"{API}/containers/create", b"{", {"Content-Length": "1"})
        connection.close()
    with contextlib.suppress(http.client.HTTPException):
        assert engine.api.raw("GET", "/_ping")[0] == 200
    deadline = time.monotonic() + 60
    while engine.api.get("/info")["NFd"] > 60:
        assert time.monotonic() < deadline, "descriptors of closed connections stay open"
        time.sleep(0.05)


def test_a_client_that_leaves_a_silent_process_is_let_go(engine: EngineProcess, api: Api) -> None:
    container = api.run("sleep", "600")
    before = api.get("/info")["NFd"]
    for _ in range(5):
        stream = Hijacked(engine.socket, f"/containers/{container}/attach?stream=1&stdout=1")
        stream.close()
    deadline = time.monotonic() + 60
    while api.get("/info")["NFd"] > before:
        assert time.monotonic() < deadline, "the engine keeps the connections of clients that left"
        time.sleep(0.2)


def test_an_engine_refuses_a_kernel_that_can_start_no_container(tmp_path: Path) -> None:
    known = Path("/proc/filesystems").read_text().splitlines()
    (tmp_path / "filesystems").write_text(
        "".join(f"{line}\n" for line in known if line.split()[-1] != "overlay")
    )
    engine = f"{sys.executable} -m deskd --data-root {tmp_path}/d --exec-root {tmp_path}/e"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c",
         f"mount --bind {tmp_path}/filesystems /proc/filesystems && exec {engine}"],
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "deskd: this kernel lacks the overlay file system (CONFIG_OVERLAY_FS), needed for container"
        " file systems: run the engine on a kernel that has it, as Desk's own machines do"
        " (`desk up`)"
    )
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "e" / "engine.sock").exists()
