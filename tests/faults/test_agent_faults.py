"""The agent as its users meet it: a real process, a real sshd, and what goes wrong with both."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.small_engine import SmallEngine
from tests.free_ports import free_port
from tests.ssh_server import SshServer, ssh_server  # noqa: F401 - a fixture

from desk.agent import spawn
from desk.agent.control import ask
from desk.agent.spec import AgentSpec, EngineAccess
from desk.errors import Conflict, MachineError
from desk.paths import MachinePaths
from desk.ssh.keys import generate_key_pair, write_key_pair


@dataclass(frozen=True)
class Setting:
    """One machine: its sshd, the engine behind it, and the agent's files."""

    server: SshServer
    engine: SmallEngine
    paths: MachinePaths
    spec: AgentSpec

    def start(self, **changes: Any) -> None:
        spawn.start(self.paths, replace(self.spec, **changes))

    def status(self) -> dict[str, Any]:
        return spawn.status(self.paths, timeout_s=60).details

    def wait_ready(self) -> None:
        wait_for(lambda: self.status()["engine"]["answers"], "the agent to reach the engine")

    def get(self, path: str, timeout_s: float = 60, *, pause_s: float = 0) -> tuple[int, Any]:
        """Send one request through the engine socket, ``pause_s`` after connecting; return status
        and JSON."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout_s)
            client.connect(str(self.paths.engine_socket))
            time.sleep(pause_s)
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def port_states(self) -> dict[str, str]:
        return {
            f"{port['address']}:{port['port']}/{port['protocol']}": port["state"]
            for port in self.status()["ports"]
        }

    @property
    def log(self) -> str:
        return self.paths.agent_log.read_text()


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def published(port: int, *, ip: str = "0.0.0.0", protocol: str = "tcp") -> dict[str, Any]:
    return {"IP": ip, "PrivatePort": 80, "PublicPort": port, "Type": protocol}


@pytest.fixture
def setting(tmp_path: Path, ssh_server: SshServer) -> Iterator[Setting]:  # noqa: F811
    directory = tmp_path / "m"
    directory.mkdir()
    with SmallEngine(tmp_path / "e.sock") as engine:
        access = EngineAccess(socket=str(engine.path), command="exit 127")
        spec = AgentSpec("m", ssh_server.endpoint, access)
        setting = Setting(ssh_server, engine, MachinePaths(directory), spec)
        try:
            yield setting
        finally:
            spawn.stop(setting.paths)


@pytest.fixture
def agent(setting: Setting) -> Setting:
    """A running agent that has reached the engine."""
    setting.start()
    setting.wait_ready()
    return setting


# --- the engine's socket -----------------------------------------------------------------------


def test_requests_reach_the_engine_and_nothing_is_left_open(agent: Setting) -> None:
    assert stat.S_IMODE(agent.paths.engine_socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(agent.paths.agent_socket.stat().st_mode) == 0o600
    for _ in range(5):
        assert agent.get("/version") == (200, {"Version": "0.0.1", "ApiVersion": "1.47"})
    # The streams of events and of questions about ports and folders, and a connection that the
    # agent keeps for lists.
    wait_for(lambda: agent.engine.open_connections <= 4, "the connections to end")
    wait_for(lambda: agent.status()["connections"] == 0, "the agent to forget them")


def test_an_upgraded_stream_half_closes(agent: Setting) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(agent.paths.engine_socket))
        client.sendall(b"POST /attach HTTP/1.1\r\nHost: x\r\nUpgrade: tcp\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 101")
        client.sendall(b"abc")
        assert client.recv(3) == b"abc"
        client.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: client.recv(10), b"")) == b"END"


def test_a_client_that_goes_away_takes_its_connection_along(agent: Setting) -> None:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(agent.paths.engine_socket))
    client.sendall(b"GET /silence HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_for(lambda: agent.engine.silent_requests == 1, "the request")
    client.close()
    wait_for(lambda: agent.engine.silent_requests == 0, "the connection's end")
    wait_for(lambda: agent.status()["connections"] == 0, "the agent to forget it")


def test_many_connections_at_once(agent: Setting) -> None:
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(120):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(60)
            client.connect(str(agent.paths.engine_socket))
            client.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            clients.append(client)
        for client in clients:
            answer = client.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200"), f"{answer!r}; the agent's log:\n{agent.log}"
    wait_for(lambda: agent.status()["connections"] == 0, "the connections to end")


def test_the_command_is_used_where_the_socket_is_not_to_be_had(setting: Setting) -> None:
    command = f"exec socat - UNIX-CONNECT:{setting.engine.path}"
    setting.start(engine=EngineAccess(socket="", command=command))
    setting.wait_ready()
    wait_for(lambda: setting.status()["pool"]["warm"] == 2, "connections in advance")
    for _ in range(6):
        assert setting.get("/version")[0] == 200
    # Connections made in advance whose command has died are replaced, never handed out.
    assert setting.server.kill_commands("socat") >= 2
    # The news of it comes to the agent before what the engine tells after it, on one connection.
    wait_for(lambda: not setting.server.kill_commands("socat"), "the commands' end")
    setting.engine.publish("news", published(free_port(), protocol="udp"))
    wait_for(setting.port_states, "the news")
    assert setting.get("/version")[0] == 200


@pytest.mark.parametrize("pause_s", [0, 1.5])
def test_an_engine_command_that_fails_is_quoted(setting: Setting, pause_s: float) -> None:
    setting.start(engine=EngineAccess(socket="", command="echo no engine here >&2; exit 1"))
    status, answer = setting.get("/version", pause_s=pause_s)
    assert status == 503
    assert answer["message"] == "the engine of machine m cannot be reached: no engine here"


@pytest.mark.slow
def test_an_engine_that_is_down_is_waited_for_then_told(agent: Setting) -> None:
    agent.engine.stop()
    wait_for(lambda: not agent.status()["engine"]["answers"], "the agent to notice")
    status, answer = agent.get("/version")
    assert status == 503
    assert "the engine of machine m" in answer["message"]
    agent.engine.start()
    agent.wait_ready()
    assert agent.get("/version")[0] == 200
    assert agent.status()["reconnects"] == 0, agent.log


def test_a_connection_ends_with_an_engine_that_did_not_answer(agent: Setting) -> None:
    """As that of an engine which is killed before it reads the request."""
    agent.engine.stop()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.settimeout(60)
        listener.bind(str(agent.engine.path))
        listener.listen(128)
        client.settimeout(60)
        client.connect(str(agent.paths.engine_socket))
        client.sendall(b"GET /silence HTTP/1.1\r\nHost: x\r\n\r\n")
        request = b""
        while not request.startswith(b"GET /silence"):  # the agent asks things of its own
            connection, _address = listener.accept()
            with connection:
                request = connection.recv(1 << 16, socket.MSG_PEEK)
        assert client.recv(1) == b""
    wait_for(lambda: agent.status()["connections"] == 0, "the agent to forget it")


# --- published ports ---------------------------------------------------------------------------


@contextlib.contextmanager
def guest_service(port: int = 0, *, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A listener in the "machine"; here that is this computer, so the agent must take another
    address for its own side."""
    with socket.create_server((host, port)) as listener:
        listener.settimeout(60)
        yield listener


def test_ports_open_and_close_with_their_containers(agent: Setting) -> None:
    port = free_port()
    # The service is on 127.0.0.5 (the "machine's" address), the agent listens on 127.0.0.1.
    with guest_service(port, host="127.0.0.5") as service:
        agent.engine.publish("web", published(port, ip="127.0.0.5"))
        wait_for(agent.port_states, "the port")
        assert agent.port_states() == {f"127.0.0.5:{port}/tcp": "busy"}
        service.close()
    agent.engine.unpublish("web")
    wait_for(lambda: not agent.port_states(), "the port to go")
    agent.engine.publish("web", published(port))
    wait_for(lambda: _accepts(port), "the port to open")
    agent.engine.unpublish("web")
    wait_for(lambda: not _accepts(port), "the port to close")


def test_a_published_port_carries_data(agent: Setting) -> None:
    """A machine address other than loopback is served on 127.0.0.1; 127.0.0.9 stands in for it
    here, told to the agent as an IPv4-mapped address, which is no loopback to it."""
    port = free_port()
    with guest_service(port, host="127.0.0.9") as service:
        agent.engine.publish("web", published(port, ip="::ffff:127.0.0.9"))
        wait_for(lambda: agent.port_states().get(f"127.0.0.1:{port}/tcp") == "open", "the port")
        with socket.create_connection(("127.0.0.1", port), 60) as client:
            connection, _ = service.accept()
            with connection:
                client.sendall(b"question")
                assert connection.recv(100) == b"question"
                connection.sendall(b"answer")
                assert client.recv(100) == b"answer"
                # Connections outlive the listener, as they do with Docker's own proxy.
                agent.engine.unpublish("web")
                wait_for(lambda: not agent.port_states(), "the port to go")
                connection.sendall(b"more")
                assert client.recv(100) == b"more"


def _accepts(port: int, host: str = "127.0.0.1") -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), 60):
        return True
    return False


def test_a_port_that_nothing_serves_resets_its_connections(agent: Setting) -> None:
    port = free_port()
    agent.engine.publish("web", published(port, ip="::ffff:127.0.0.9"))
    wait_for(lambda: agent.port_states().get(f"127.0.0.1:{port}/tcp") == "open", "the port")
    # The reset may come before the connection was seen to be made.
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", port), 60) as client,
    ):
        client.recv(1)


def test_ipv6_loopback_is_served_too(agent: Setting) -> None:
    port = free_port()
    agent.engine.publish("web", published(port), published(port, ip="::"))
    wait_for(lambda: len(agent.port_states()) == 2, "both ports")
    assert agent.port_states() == {
        f"127.0.0.1:{port}/tcp": "open",
        f"::1:{port}/tcp": "open",
    }
    assert _accepts(port, "::1")


def test_a_busy_port_is_told_and_taken_when_free(agent: Setting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        busy, free = other.getsockname()[1], free_port()
        agent.engine.publish("web", published(busy), published(free))
        wait_for(lambda: len(agent.port_states()) == 4, "the ports")
        assert agent.port_states()[f"127.0.0.1:{busy}/tcp"] == "busy"
        assert agent.port_states()[f"127.0.0.1:{free}/tcp"] == "open"
        told = next(port for port in agent.status()["ports"] if port["state"] == "busy")
        assert "another program uses it" in told["error"]
        assert "Stop that program" in told["hint"]
        assert agent.log.count(f"127.0.0.1:{busy}/tcp of web cannot be opened") == 1
    agent.engine.emit()
    wait_for(lambda: agent.port_states()[f"127.0.0.1:{busy}/tcp"] == "open", "the port")


def test_a_port_is_promised_before_the_start_and_closed_when_nothing_starts(
    agent: Setting,
) -> None:
    port = free_port()
    agent.engine.ask({"Id": 7, "Names": ["/web"], "Ports": [published(port)]})
    assert agent.engine.answers.get(timeout=60) == ("7", {"Refusal": ""})
    assert agent.port_states()[f"127.0.0.1:{port}/tcp"] == "open"
    agent.engine.publish("other", published(free_port()))
    wait_for(lambda: len(agent.port_states()) == 4, "the other container's port")
    assert agent.port_states()[f"127.0.0.1:{port}/tcp"] == "open"
    agent.engine.ask({"Id": 7, "Settled": True})
    wait_for(lambda: len(agent.port_states()) == 2, "the port to close")


def test_a_promised_port_stays_with_the_container_that_started(agent: Setting) -> None:
    port = free_port()
    agent.engine.ask({"Id": 1, "Names": ["/web"], "Ports": [published(port)]})
    agent.engine.answers.get(timeout=60)
    agent.engine.publish("web", published(port))
    agent.engine.ask({"Id": 1, "Settled": True})
    agent.engine.publish("other", published(free_port()))
    wait_for(lambda: len(agent.port_states()) == 4, "the other container's port")
    assert agent.port_states()[f"127.0.0.1:{port}/tcp"] == "open"
    assert agent.log.count(f"port 127.0.0.1:{port}/tcp of web is open") == 1


def test_a_busy_port_is_refused_and_nothing_is_opened(agent: Setting) -> None:
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as other:
        busy = other.getsockname()[1]
        ports = [published(free), published(busy)]
        agent.engine.ask({"Id": 2, "Names": ["/web"], "Ports": ports})
        number, answer = agent.engine.answers.get(timeout=60)
    assert number == "2"
    assert answer["Refusal"].startswith(
        f"Bind for 127.0.0.1:{busy} failed: port is already allocated"
    )
    assert agent.port_states() == {}


def test_promises_end_with_the_connection(agent: Setting) -> None:
    port = free_port()
    agent.engine.ask({"Id": 3, "Names": ["/web"], "Ports": [published(port)]})
    agent.engine.answers.get(timeout=60)
    agent.server.kill_sessions()
    wait_for(lambda: agent.port_states() == {}, "the port to close")


def test_an_sctp_port_is_told_not_to_be_forwarded(agent: Setting) -> None:
    port = free_port()
    agent.engine.publish("phone", published(port, protocol="sctp"))
    wait_for(agent.port_states, "the port")
    assert set(agent.port_states().values()) == {"unsupported"}
    assert "TCP and UDP ports are" in agent.log


def test_a_machine_that_does_not_relay_udp_is_told(agent: Setting) -> None:
    """This one's command ends with 127, as a program does that is not there."""
    port = free_port(socket.SOCK_DGRAM)
    agent.engine.publish("dns", published(port, protocol="udp"))
    wait_for(lambda: "dead" in agent.port_states().values(), "the port's state")
    told = agent.status()["ports"][0]
    assert f"port 127.0.0.1:{port}/udp of dns leads nowhere" in told["error"]
    assert "desk machine upgrade" in told["hint"]
    assert agent.log.count("published UDP ports lead nowhere") == 1


# --- lost connections --------------------------------------------------------------------------


def test_a_killed_connection_is_made_again_with_ports_and_events(agent: Setting) -> None:
    port = free_port()
    agent.engine.publish("web", published(port))
    wait_for(lambda: _accepts(port), "the port")
    agent.server.kill_sessions()
    # A request during the outage waits and succeeds.
    assert agent.get("/version")[0] == 200
    wait_for(lambda: agent.status()["reconnects"] == 1, "the agent to count it")
    assert _accepts(port)
    agent.wait_ready()
    agent.engine.unpublish("web")
    wait_for(lambda: not _accepts(port), "events to come again")


def test_a_restarted_sshd_is_found_again(agent: Setting) -> None:
    agent.server.stop()
    wait_for(lambda: agent.status()["state"] == "connecting", "the loss")
    assert agent.paths.engine_socket.exists()
    agent.server.start()
    assert agent.get("/version")[0] == 200


@pytest.mark.slow
def test_a_machine_that_is_away_is_told_in_the_engines_own_form(agent: Setting) -> None:
    agent.server.stop()
    status, answer = agent.get("/version")
    assert status == 503
    assert answer["message"].startswith("machine m is not reachable: nothing answers at 127.0.0.1")
    assert "connection refused" in agent.status()["last_error"]
    # Whoever asks next learns it soon, through any client: here the docker command line.
    told = subprocess.run(
        ["docker", "-H", f"unix://{agent.paths.engine_socket}", "ps"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 1
    assert "machine m is not reachable: nothing answers" in told.stderr


@pytest.mark.slow
def test_a_frozen_machine_comes_back_by_itself(agent: Setting) -> None:
    """SIGSTOP of everything on the machine's side, for longer than the keepalive waits."""
    pids = [*agent.server.session_pids(), agent.server.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: agent.status()["state"] == "connecting", "the loss to be noticed")
        wait_for(lambda: "lost" in agent.log, "the line in the log")
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    wait_for(lambda: agent.status()["state"] == "connected", "the connection")
    assert agent.get("/version")[0] == 200


def test_an_agent_that_was_frozen_checks_its_connection(agent: Setting) -> None:
    """What a sleeping computer does to the agent: it stops, and its connection dies meanwhile."""
    pid = agent.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    agent.server.kill_sessions()
    os.kill(pid, signal.SIGCONT)
    assert agent.get("/version")[0] == 200
    wait_for(lambda: "this computer slept" in agent.log, "the log line")
    assert agent.status()["reconnects"] >= 1


def test_reconnect_on_request(agent: Setting) -> None:
    spawn.reconnect(agent.paths)
    wait_for(lambda: agent.status()["reconnects"] == 1, "the new connection")
    assert agent.get("/version")[0] == 200


# --- looks at everything -------------------------------------------------------------------------


def looks(agent: Setting) -> list[str]:
    """The log's lines about looks that no command asked for."""
    return [line for line in agent.log.splitlines() if ": checked VM, SSH" in line]


def test_a_lost_connection_is_followed_by_one_look(agent: Setting) -> None:
    port = free_port()
    with guest_service(port, host="127.0.0.9"):
        agent.engine.publish("web", published(port, ip="::ffff:127.0.0.9"))
        wait_for(lambda: agent.port_states().get(f"127.0.0.1:{port}/tcp") == "open", "the port")
        assert agent.status()["checkups"] == {"last": None, "last_unasked": None}
        agent.server.kill_sessions()
        wait_for(lambda: agent.status()["checkups"]["last_unasked"], "the look")
    found = agent.status()["checkups"]["last_unasked"]
    assert found["reason"] == "the SSH connection was made anew"
    assert found["faults"] == []
    assert re.fullmatch(
        r"checked VM, SSH, engine, port in \d+\.\d s: all is well", found["summary"]
    )
    (line,) = looks(agent)
    assert line.endswith(f"{found['reason']}: {found['summary']}")


def test_sleep_is_followed_by_one_look_that_tells_what_was_mended(agent: Setting) -> None:
    """The connection dies while this computer sleeps, and with it a container's service."""
    port = free_port()
    agent.engine.publish("web", published(port, ip="::ffff:127.0.0.9"))
    wait_for(lambda: agent.port_states().get(f"127.0.0.1:{port}/tcp") == "open", "the port")
    pid = agent.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    agent.server.kill_sessions()
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: looks(agent), "the line in the log")
    found = agent.status()["checkups"]["last_unasked"]
    assert re.fullmatch(r"this computer slept for about \d+ s", found["reason"])
    (fault,) = found["faults"]
    assert fault.startswith(f"port 127.0.0.1:{port}/tcp of web: ")
    assert found["summary"].endswith(f": connected anew; {fault}")
    assert len(looks(agent)) == 1


def test_a_look_on_request_connects_to_every_port(agent: Setting) -> None:
    ports = [free_port(), free_port()]
    with guest_service(ports[0], host="127.0.0.9") as service:
        for name, port in zip(("web", "silent"), ports, strict=True):
            agent.engine.publish(name, published(port, ip="::ffff:127.0.0.9"))
        wait_for(lambda: list(agent.port_states().values()) == ["open"] * 2, "the ports")
        last = spawn.check(agent.paths, timeout_s=60)["last"]
        service.accept()[0].close()
    assert "checked VM, SSH, engine, 2 ports in " in last["summary"]
    (fault,) = last["faults"]
    assert fault.startswith(f"port 127.0.0.1:{ports[1]}/tcp of silent: ")
    again = spawn.check(agent.paths, timeout_s=60)["last"]
    assert again["number"] > last["number"]
    assert len(again["faults"]) == 2
    assert looks(agent) == []


def test_a_look_tells_of_an_engine_and_of_a_connection_that_stay_away(agent: Setting) -> None:
    agent.engine.stop()
    last = spawn.check(agent.paths, timeout_s=60)["last"]
    assert last["faults"] == ["the machine's engine does not answer"]
    agent.server.stop()
    wait_for(lambda: agent.status()["state"] == "connecting", "the loss")
    last = spawn.check(agent.paths, timeout_s=60)["last"]
    assert re.fullmatch(
        r"checked SSH in \d+\.\d s: nothing answers at 127\.0\.0\.1:\d+.*", last["summary"]
    )


# --- connections that cannot be -----------------------------------------------------------------


def test_a_changed_host_key_is_refused_at_once(agent: Setting) -> None:
    agent.server.change_host_key()
    wait_for(lambda: "host key" in agent.status()["last_error"], "the refusal")
    status, answer = agent.get("/version")
    assert status == 503
    assert "shows the host key SHA256:" in answer["message"]


def test_a_wrong_key_is_told(setting: Setting) -> None:
    write_key_pair(generate_key_pair("stranger"), setting.spec.endpoint.private_key)
    setting.start()
    status, answer = setting.get("/version")
    assert status == 503
    assert "does not accept Desk's key" in answer["message"]
    assert "authorized_keys" in answer["message"]


def test_an_unreachable_port_is_told(setting: Setting) -> None:
    setting.start(endpoint=replace(setting.spec.endpoint, port=free_port()))
    wait_for(lambda: setting.status()["last_error"], "the failure")
    assert "known_hosts" in setting.status()["last_error"]


# --- the agent's own life ------------------------------------------------------------------------


def test_starting_twice_keeps_the_first(agent: Setting) -> None:
    first = spawn.status(agent.paths).pid
    agent.start()
    assert spawn.status(agent.paths).pid == first


def test_other_instructions_replace_the_agent(agent: Setting) -> None:
    first = spawn.status(agent.paths).pid
    agent.start(engine=replace(agent.spec.engine, command="exit 1"))
    assert spawn.status(agent.paths).pid not in (first, None)
    agent.wait_ready()


def test_a_second_agent_is_refused_and_harms_nothing(agent: Setting) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "desk.agent", "m", "--directory", str(agent.paths.directory)],
        input=agent.spec.to_json(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    answer = json.loads(second.stdout)
    assert answer["conflict"]
    assert f"runs already (process {agent.status()['pid']})" in answer["error"]
    assert agent.get("/version")[0] == 200


def test_stale_files_of_a_killed_agent_are_replaced(agent: Setting) -> None:
    pid = agent.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not spawn.status(agent.paths).running, "the agent to be gone")
    assert agent.paths.engine_socket.exists()
    assert agent.paths.agent_pid.exists()
    agent.start()
    agent.wait_ready()
    assert agent.get("/version")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_agent_and_its_files(agent: Setting, number: int) -> None:
    port = free_port()
    agent.engine.publish("web", published(port))
    wait_for(lambda: _accepts(port), "the port")
    os.kill(agent.status()["pid"], number)
    wait_for(lambda: not spawn.status(agent.paths).running, "the agent to be gone")
    assert [path.name for path in agent.paths.directory.iterdir()] == ["agent.log"]
    assert not _accepts(port)
    wait_for(lambda: not agent.server.session_pids(), "the SSH connection to end")


def test_stop_needs_no_machine_that_answers(agent: Setting) -> None:
    for pid in agent.server.session_pids():
        os.kill(pid, signal.SIGSTOP)
    spawn.stop(agent.paths)
    assert not spawn.status(agent.paths).running


def test_stop_ends_an_agent_that_does_not_answer(agent: Setting) -> None:
    pid = agent.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    spawn.stop(agent.paths, timeout_s=0.5)
    assert not spawn.status(agent.paths).running
    assert list(agent.paths.directory.iterdir()) == [agent.paths.agent_log]


def test_stop_and_status_without_an_agent(setting: Setting) -> None:
    spawn.stop(setting.paths)
    assert not spawn.status(setting.paths).running
    with pytest.raises(MachineError, match="no agent answers"):
        spawn.reconnect(setting.paths)


def test_an_unknown_request_is_refused(agent: Setting) -> None:
    with pytest.raises(MachineError, match="cannot do 'dance'") as caught:
        ask(agent.paths.agent_socket, "dance")
    assert "status" in caught.value.hint
    assert ask(agent.paths.agent_socket, "ping") == "pong"


def test_a_path_too_long_for_a_socket_is_named(setting: Setting) -> None:
    deep = setting.paths.directory / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with pytest.raises(MachineError, match="too long for a socket") as caught:
        spawn.start(MachinePaths(deep), setting.spec)
    assert "DESK_HOME" in caught.value.hint
    assert [path.name for path in deep.iterdir()] == ["agent.log"]


def test_start_reports_a_conflict_as_one(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    setting.start()
    monkeypatch.setattr(
        spawn, "status", lambda *_, **__: spawn.AgentStatus(running=False, pid=None, details={})
    )
    with pytest.raises(Conflict, match="runs already"):
        setting.start()
