"""The agent's parts by themselves: which ports, instructions, locks, sleep, answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from desk.agent import spawn, wake
from desk.agent.acceptor import Acceptor, Handler
from desk.agent.control import ControlServer, ask
from desk.agent.gateway import answer_503
from desk.agent.link import Link, LinkDown
from desk.agent.pidfile import PidFile
from desk.agent.ports import Forward, wanted_forwards
from desk.agent.spec import AgentSpec, EngineAccess, PowerWishes
from desk.errors import Conflict, MachineError
from desk.paths import MachinePaths
from desk.ssh.endpoint import Endpoint

# --- which ports -------------------------------------------------------------------------------


def _container(name: str, *ports: dict[str, Any]) -> dict[str, Any]:
    return {"Id": "f" * 64, "Names": [f"/{name}"], "Ports": list(ports)}


def _port(public: int | None, ip: str | None = "0.0.0.0", kind: str = "tcp") -> dict[str, Any]:
    port: dict[str, Any] = {"PrivatePort": 80, "Type": kind}
    if public is not None:
        port["PublicPort"] = public
    if ip is not None:
        port["IP"] = ip
    return port


def test_a_port_on_every_address_is_served_on_both_loopbacks() -> None:
    wanted = wanted_forwards([_container("web", _port(8080), _port(8080, "::"))])
    assert wanted == {
        Forward("tcp", "127.0.0.1", 8080, "127.0.0.1"): "web",
        Forward("tcp", "::1", 8080, "127.0.0.1"): "web",
    }


def test_the_order_of_the_engines_list_does_not_matter() -> None:
    one = wanted_forwards([_container("web", _port(8080), _port(8080, "::"))])
    other = wanted_forwards([_container("web", _port(8080, "::"), _port(8080))])
    assert one == other


@pytest.mark.parametrize(
    ("ip", "address", "target"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.7", "127.0.0.7", "127.0.0.7"),
        ("::1", "::1", "::1"),
        ("::", "::1", "::1"),
        ("10.0.2.15", "127.0.0.1", "10.0.2.15"),
    ],
)
def test_where_a_port_on_one_address_is_served(ip: str, address: str, target: str) -> None:
    assert list(wanted_forwards([_container("web", _port(80, ip))])) == [
        Forward("tcp", address, 80, target)
    ]


def test_ports_that_are_only_exposed_or_make_no_sense_are_left_out() -> None:
    containers = [
        _container("a", _port(None)),
        _container("b", _port(0)),
        _container("c", _port(80, "nonsense")),
        {"Id": "0123456789abcdef"},
        {"Id": "x", "Names": [], "Ports": None},
    ]
    assert wanted_forwards(containers) == {}


def test_a_container_without_a_name_goes_by_its_id() -> None:
    container = {"Id": "0123456789abcdef", "Names": [], "Ports": [_port(80, "127.0.0.1")]}
    assert list(wanted_forwards([container]).values()) == ["0123456789ab"]


def test_forwards_are_written_as_docker_writes_them() -> None:
    assert str(Forward("tcp", "127.0.0.1", 80, "x")) == "127.0.0.1:80/tcp"
    assert str(Forward("udp", "::1", 53, "x")) == "[::1]:53/udp"


# --- instructions ------------------------------------------------------------------------------


def test_instructions_survive_the_way_to_the_agent() -> None:
    endpoint = Endpoint("h", 22, "u", Path("/k"), Path("/kh"))
    spec = AgentSpec("m", endpoint, EngineAccess(socket="/s", command="c d"))
    assert AgentSpec.from_json(spec.to_json()) == spec
    spec = replace(spec, power=PowerWishes("battery", 5 * 10**8))
    assert AgentSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"machine": "m", "endpoint": {}}'])
def test_instructions_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(MachineError, match="cannot read its instructions"):
        AgentSpec.from_json(text)


# --- the lock ----------------------------------------------------------------------------------


def test_the_lock_names_its_holder_and_is_exclusive(tmp_path: Path) -> None:
    path = tmp_path / "m" / "agent.pid"
    path.parent.mkdir()
    first, second = PidFile(path), PidFile(path)
    assert (first.holder(), first.is_held()) == (None, False)
    first.acquire()
    assert second.is_held()
    assert second.holder() == os.getpid()
    with pytest.raises(Conflict, match=rf"machine m runs already \(process {os.getpid()}\)"):
        second.acquire()
    first.release()
    assert not path.exists()
    second.acquire()
    second.release()


def test_a_lock_file_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "agent.pid"
    code = (
        "import os, sys; from pathlib import Path; from desk.agent.pidfile import PidFile;"
        "PidFile(Path(sys.argv[1])).acquire(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert path.exists()
    lock = PidFile(path)
    assert not lock.is_held()
    lock.acquire()
    assert path.read_text() == f"{os.getpid()}\n"
    lock.release()


def test_looking_at_the_lock_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "agent.pid"
    path.touch()
    enough = threading.Event()

    def look() -> None:
        while not enough.is_set():
            PidFile(path).is_held()

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for thread in lookers:
        thread.start()
    try:
        for _ in range(100):
            assert not PidFile(path).is_held()
        for _ in range(20):
            lock = PidFile(path)
            lock.acquire()
            assert PidFile(path).holder() == os.getpid()
            lock.release()
    finally:
        enough.set()
        for thread in lookers:
            thread.join()


# --- sleep -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wall_s", "monotonic_s", "slept_s"),
    [
        (2.0, 2.0, 0.0),
        (6.0, 6.0, 0.0),  # a busy computer
        (600.0, 2.0, 598.0),  # Linux and macOS: the monotonic clock stood still
        (600.0, 600.0, 598.0),  # Windows, or a stopped process
        (-3600.0, 2.0, 0.0),  # somebody set the clock back
    ],
)
def test_lost_time_is_noticed(
    monkeypatch: pytest.MonkeyPatch, wall_s: float, monotonic_s: float, slept_s: float
) -> None:
    clocks = {"wall": 1e9, "monotonic": 1e3}
    monkeypatch.setattr(time, "time", lambda: clocks["wall"])
    monkeypatch.setattr(time, "monotonic", lambda: clocks["monotonic"])
    detector = wake.SleepDetector(2.0)
    clocks["wall"] += wall_s
    clocks["monotonic"] += monotonic_s
    assert detector.slept_s() == pytest.approx(slept_s)
    assert detector.slept_s() == 0.0


# --- the answer for a machine that is away -----------------------------------------------------


@pytest.mark.parametrize(("method", "has_body"), [("GET", True), ("POST", True), ("HEAD", False)])
def test_a_503_is_http_and_says_the_sentence(method: str, has_body: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        body = "x" * 100_000 if method == "POST" else ""
        request = f"{method} /info HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        server = threading.Thread(target=answer_503, args=(theirs, "machine m is away"))
        server.start()
        ours.sendall(request.encode())
        answer = b"".join(iter(lambda: ours.recv(1 << 16), b""))
        ours.shutdown(socket.SHUT_WR)
        server.join(60)
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert (json.loads(content) if has_body else content) == (
        {"message": "machine m is away"} if has_body else b""
    )


def test_a_client_that_says_nothing_gets_nothing() -> None:
    ours, theirs = socket.socketpair()
    ours.shutdown(socket.SHUT_WR)
    answer_503(theirs, "machine m is away")
    assert ours.recv(1) == b""
    ours.close()


# --- the control socket ------------------------------------------------------------------------


def test_control_requests_and_errors(tmp_path: Path) -> None:
    def fail() -> object:
        raise MachineError("it is broken", hint="Mend it.")

    path = tmp_path / "agent.sock"
    path.write_text("left by a dead agent")
    taken: list[object] = []
    server = ControlServer(path, {"add": lambda: {"sum": 3}, "fail": fail}, {"take": taken.append})
    server.start()
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        assert ask(path, "add") == {"sum": 3}
        assert ask(path, "take", value={"a": 1}) is None
        assert taken == [{"a": 1}]
        with pytest.raises(MachineError, match="cannot do 'take'"):
            ask(path, "take")
        with pytest.raises(MachineError, match="it is broken") as caught:
            ask(path, "fail")
        assert caught.value.hint == "Mend it."
        with pytest.raises(MachineError, match="cannot do 'x'"):
            ask(path, "x")
    finally:
        server.close()
        server.close()
    assert not path.exists()
    with pytest.raises(MachineError, match="no agent answers"):
        ask(path, "add")


def test_control_survives_nonsense_and_never_unpickles(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    server = ControlServer(path, {"ping": lambda: "pong"})
    server.start()
    try:
        from multiprocessing.connection import Client

        with Client(str(path)) as client:
            client.send({"do": "ping"})  # a pickle
            with pytest.raises(EOFError):
                client.recv_bytes()
        with Client(str(path)) as client:
            client.send_bytes(b'["ping"]')
            assert b"cannot do None" in client.recv_bytes()
        assert ask(path, "ping") == "pong"
    finally:
        server.close()


def test_an_agent_of_an_older_desk_is_named_with_the_remedy(tmp_path: Path) -> None:
    paths = MachinePaths(tmp_path)
    server = ControlServer(paths.agent_socket, {"status": lambda: {"state": "connected"}})
    server.start()
    try:
        with pytest.raises(MachineError, match="of an older Desk") as caught:
            spawn.set_power(paths, PowerWishes())
        assert "desk machine restart" in caught.value.hint
    finally:
        server.close()


# --- listening ---------------------------------------------------------------------------------


def in_thread(serve: Callable[[socket.socket], None]) -> Handler:
    """Return a handler that has each connection served in a thread, and closed after it."""

    def run(connection: socket.socket, ended: Callable[[], None]) -> None:
        with connection:
            serve(connection)
        ended()

    return lambda *given: threading.Thread(target=run, args=given, daemon=True).start()


def test_acceptor_serves_closes_and_forgets() -> None:
    def echo(connection: socket.socket) -> None:
        while data := connection.recv(100):
            connection.sendall(data)

    acceptor = Acceptor()
    acceptor.start()
    one, two = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    addresses = [one.getsockname(), two.getsockname()]
    try:
        for listener in (one, two):
            acceptor.add(listener, in_thread(echo))
        clients = [socket.create_connection(address, 5) for address in addresses]
        for client in clients:
            client.sendall(b"hi")
            assert client.recv(10) == b"hi"
        assert acceptor.connections == 2
        acceptor.remove(one)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(addresses[0], 5)
        clients[0].sendall(b"still")
        assert clients[0].recv(10) == b"still"
    finally:
        acceptor.close()
    for client in clients:
        assert client.recv(1) == b""
        client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(addresses[1], 5)


def wait_for_its_end(connection: socket.socket) -> None:
    connection.recv(1)


def test_acceptor_refuses_what_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("desk.agent.acceptor.MOST_CONNECTIONS", 1)
    acceptor = Acceptor()
    acceptor.start()
    listener = socket.create_server(("127.0.0.1", 0))
    try:
        acceptor.add(listener, in_thread(wait_for_its_end))
        first = socket.create_connection(listener.getsockname(), 5)
        deadline = time.monotonic() + 60
        while not acceptor.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        # The reset may come before the connecting call has returned.
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection(listener.getsockname(), 5) as second,
        ):
            second.recv(1)
        first.close()
    finally:
        acceptor.close()


# --- the link ----------------------------------------------------------------------------------


def test_a_link_tells_why_there_is_no_connection_and_closes_at_once(tmp_path: Path) -> None:
    endpoint = Endpoint("127.0.0.1", 9, "u", tmp_path / "key", tmp_path / "known_hosts")
    link = Link(endpoint, lambda session: None)
    link.start()
    try:
        with pytest.raises(LinkDown, match="cannot read the known host keys"):
            link.session(0.3)
        assert link.connected_at is None
        assert link.reconnects == 0
    finally:
        link.close()
    with pytest.raises(LinkDown, match="its agent is stopping"):
        link.session(5)
