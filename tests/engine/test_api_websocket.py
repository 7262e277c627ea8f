"""``attach/ws``: a container's stdio over a WebSocket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)

from tests.engine_process import API, Api, EngineProcess

pytestmark = pytest.mark.root


class Client:
    """A WebSocket client on the engine's socket."""

    def __init__(self, path: str, target: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(path)
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []
        self.send(Request(host="engine", target=f"{API}{target}"))

    def send(self, event: Event) -> None:
        self._socket.sendall(self._protocol.send(event))

    def next(self) -> Event:
        while not self._events:
            self._protocol.receive_data(self._socket.recv(65536) or None)
            self._events = list(self._protocol.events())
        return self._events.pop(0)

    def read_until_close(self) -> bytes:
        data = b""
        while not isinstance(event := self.next(), CloseConnection):
            assert isinstance(event, BytesMessage)
            data += event.data
        return data

    def close(self) -> None:
        self._socket.close()


@contextmanager
def attached(engine: EngineProcess, container: str, query: str) -> Iterator[Client]:
    client = Client(engine.socket, f"/containers/{container}/attach/ws?{query}")
    try:
        assert isinstance(client.next(), AcceptConnection)
        yield client
    finally:
        client.close()


def test_typing_and_output_of_both_streams_until_the_end(engine: EngineProcess, api: Api) -> None:
    script = "read a; echo got $a; echo problem >&2; exit 3"
    container = api.create("sh", "-c", script, OpenStdin=True)
    query = "stream=1&stdin=1&stdout=1&stderr=1"
    with attached(engine, container, query) as client:
        api.post(f"/containers/{container}/start")
        client.send(TextMessage(data="some"))
        client.send(BytesMessage(data=b"thing\n"))
        data = client.read_until_close()
    assert sorted(data.splitlines()) == [b"got something", b"problem"]
    assert api.wait(container) == 3


def test_a_terminal_pings_and_detach_keys(engine: EngineProcess, api: Api) -> None:
    container = api.run("cat", OpenStdin=True, Tty=True)
    with attached(engine, container, "stream=1&stdin=1&stdout=1") as client:
        client.send(Ping(payload=b"here"))
        assert client.next() == Pong(payload=b"here")
        client.send(BytesMessage(data=b"hi\n"))
        data = b""
        while data.count(b"hi") < 2:
            event = client.next()
            assert isinstance(event, BytesMessage)
            data += event.data
        client.send(BytesMessage(data=b"\x10\x11"))
        assert isinstance(client.next(), CloseConnection)
    assert api.inspect(container)["State"]["Running"]


def test_a_client_that_closes_leaves_the_container_alone(engine: EngineProcess, api: Api) -> None:
    container = api.run("sleep", "60")
    with attached(engine, container, "stream=1&stdout=1") as client:
        client.send(CloseConnection(code=1000))
        assert isinstance(client.next(), CloseConnection)
    assert api.inspect(container)["State"]["Running"]


def test_logs_are_replayed_without_frames(engine: EngineProcess, api: Api) -> None:
    container = api.run("sh", "-c", "echo one; echo two >&2")
    api.wait(container)
    with attached(engine, container, "logs=1&stdout=1&stderr=1") as client:
        assert sorted(client.read_until_close().splitlines()) == [b"one", b"two"]


def test_refusals_are_http_answers(engine: EngineProcess, api: Api) -> None:
    error = api.error("GET", "/containers/nosuch/attach/ws", stream=1)
    assert (error.status, error.message) == (404, "No such container: nosuch")
    container = api.create("true")
    error = api.error("GET", f"/containers/{container}/attach/ws", stream=1)
    assert error.status == 400
    assert "Sec-WebSocket-Key" in error.message
    client = Client(engine.socket, "/containers/nosuch/attach/ws?stream=1")
    event = client.next()
    client.close()
    assert isinstance(event, RejectConnection)
    assert event.status_code == 404
