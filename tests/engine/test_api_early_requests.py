"""What clients see of an engine that listens already and is still being loaded and composed."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_process import API, IMAGE, EngineProcess, UnixConnection, until

pytestmark = pytest.mark.root

HELD = """
import os, sys, time
class Gate:
    def find_spec(self, name, path=None, target=None):
        if name == "deskd.compose":
            while not os.path.exists({gate!r}):
                time.sleep(0.01)
sys.meta_path.insert(0, Gate())
from deskd.__main__ import main
main()
"""


class HeldEngine(EngineProcess):
    """An engine that loads its heavy modules only after ``release``."""

    def command(self, *flags: str) -> list[str]:
        argv = super().command(*flags)
        place = argv.index("-m")
        argv[place : place + 2] = ["-c", HELD.format(gate=str(self.root / "gate"))]
        return argv

    def release(self) -> None:
        (self.root / "gate").touch()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(30)
        connection.connect(self.socket)
        return connection


@pytest.fixture
def held() -> Iterator[HeldEngine]:
    engine = HeldEngine()
    try:
        engine.start()
        yield engine
    finally:
        engine.release()
        engine.close()


def exchange(engine: HeldEngine, request: bytes) -> bytes:
    """Send a request on a connection of its own; return the answer's bytes."""
    with contextlib.closing(engine.connect()) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while block := connection.recv(65536):
            answer += block
        return answer


def test_greetings_read_the_same_early_and_late(held: HeldEngine) -> None:
    requests = [
        b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"HEAD /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1.44/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /_ping HTTP/1.0\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    early = [exchange(held, request) for request in requests]
    held.release()
    assert held.api.get("/containers/json") == []
    late = [exchange(held, request) for request in requests]
    assert early == late
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in early)


def test_other_requests_wait_for_the_engine(held: HeldEngine) -> None:
    with contextlib.ExitStack() as stack:
        listing = stack.enter_context(contextlib.closing(UnixConnection(held.socket)))
        listing.request("GET", "/_ping")
        assert listing.getresponse().read() == b"OK"
        listing.request("GET", f"{API}/containers/json")  # on the same connection
        parts = stack.enter_context(contextlib.closing(held.connect()))
        body = json.dumps({"Name": "early"}).encode()
        parts.sendall(b"POST /volumes/create HTTP/1.1\r\nHost: x\r\nContent-")
        malformed = stack.enter_context(contextlib.closing(held.connect()))
        malformed.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        left = held.connect()
        left.sendall(b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n")
        left.close()
        assert held.api.raw("GET", "/_ping")[0] == 200  # others are not held up
        held.release()
        parts.sendall(f"Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        parts.sendall(body)
        assert listing.getresponse().read() == b"[]\n"
        assert parts.recv(65536).startswith(b"HTTP/1.1 201 ")
        assert malformed.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert [volume["Name"] for volume in held.api.get("/volumes")["Volumes"]] == ["early"]


def test_a_container_can_be_the_first_request(held: HeldEngine) -> None:
    with contextlib.closing(UnixConnection(held.socket)) as connection:
        connection.request(
            "POST",
            f"{API}/containers/create",
            json.dumps({"Image": IMAGE, "Cmd": ["true"]}),
            {"Content-Type": "application/json"},
        )
        held.release()
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["message"]) == (
            404,
            f"No such image: {IMAGE}:latest",
        )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_engine_that_is_told_to_end_before_it_is_whole(
    held: HeldEngine, number: signal.Signals
) -> None:
    assert held.process is not None
    with contextlib.closing(held.connect()) as waiting:
        waiting.sendall(b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n")
        held.process.send_signal(number)
        held.release()
        assert held.process.wait(60) == 0
        assert b"the engine ended before it could answer" in waiting.recv(4096)
        assert waiting.recv(100) == b""
    held.process = None
    assert not Path(held.socket).exists()
    assert not (held.root / "run" / "engine.pid").exists()
    assert "Traceback" not in held.log()
    held.start()
    assert held.api.get("/containers/json") == []


def test_an_engine_that_cannot_be_composed_ends_with_its_sentence(held: HeldEngine) -> None:
    assert held.process is not None
    (held.data_root / "engine.db").write_bytes(b"no database" * 100)
    with contextlib.closing(held.connect()) as waiting:
        waiting.sendall(b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n")
        held.release()
        assert held.process.wait(60) == 1
        assert b"the engine ended before it could answer" in waiting.recv(4096)
        assert waiting.recv(100) == b""
    held.process = None
    last = held.log().splitlines()[-1]
    assert last.startswith("deskd: ")
    assert f"{held.data_root}/engine.db" in last
    assert not Path(held.socket).exists()
    (held.data_root / "engine.db").unlink()


def test_many_early_connections_are_all_served(held: HeldEngine) -> None:
    request = b"GET /containers/json HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(contextlib.closing(held.connect())) for _ in range(200)]
        for connection in connections:
            connection.sendall(request)
        held.release()
        for connection in connections:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    until(lambda: held.api.get("/info")["NFd"] < 100)
