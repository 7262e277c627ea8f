"""The agent in front of the real engine, which lives in a network of its own like in a machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.bench.engines import busybox_archive, network_namespace
from tests.datagram_echo import ECHO
from tests.free_ports import free_port
from tests.http_service import HttpService, QuietHandler
from tests.ssh_server import SshServer

from desk.agent import spawn
from desk.agent.spec import AgentSpec, EngineAccess
from desk.paths import MachinePaths

pytestmark = [pytest.mark.root, pytest.mark.slow]


@dataclass
class Machine:
    """A network namespace with an engine and a sshd in it, and the agent on this side."""

    namespace: str
    directory: Path
    server: SshServer
    paths: MachinePaths
    engine: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def socket(self) -> Path:
        return self.directory / "e.sock"

    def start_engine(self) -> None:
        with (self.directory / "engine.log").open("ab") as log:
            self.engine = subprocess.Popen(
                [
                    *("nsenter", f"--net={self.namespace}", sys.executable, "-m", "deskd"),
                    *("--data-root", str(self.directory / "data")),
                    *("--exec-root", str(self.directory / "exec")),
                    *("-H", f"unix://{self.socket}", "--host-gateway-ip", "agent"),
                ],
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers, "the engine")

    def _answers(self) -> bool:
        assert self.engine is not None
        log = (self.directory / "engine.log").read_text
        assert self.engine.poll() is None, f"the engine ended: {log()}"
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.socket))
            return True
        return False

    def stop_engine(self, number: int) -> None:
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.send_signal(number)
            engine.wait(60)

    def docker(self, *arguments: str, timeout_s: float = 60) -> str:
        """Run the docker command line through the agent; return its standard output."""
        done = subprocess.run(
            ["docker", "-H", f"unix://{self.paths.engine_socket}", *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("machine")
    paths = MachinePaths(directory / "m")
    paths.directory.mkdir()
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(network_namespace())
        # Every machine has a way out, if only one that leads nowhere.
        route = ["ip", "route", "add", "default", "dev", "lo"]
        subprocess.run(["nsenter", f"--net={namespace}", *route], check=True)
        server = stack.enter_context(SshServer(directory / "s", namespace=namespace))
        machine = Machine(namespace, directory, server, paths)
        machine.start_engine()
        stack.callback(machine.stop_engine, signal.SIGTERM)
        access = EngineAccess(
            socket=str(machine.socket), command=f"{sys.executable} -m deskd dial-stdio"
        )
        spawn.start(paths, AgentSpec("m", server.endpoint, access, leads_back=True))
        stack.callback(spawn.stop, paths)
        stack.callback(_remove_containers, machine)
        with busybox_archive(directory).open("rb") as archive:
            subprocess.run(
                ["docker", "-H", f"unix://{paths.engine_socket}", "import", "-", "box"],
                stdin=archive,
                check=True,
                capture_output=True,
                timeout=60,
            )
        yield machine


@pytest.fixture(autouse=True)
def _containers_go(machine: Machine) -> Iterator[None]:
    """Remove what a failed test left, so that its names are free in a second run."""
    yield
    _remove_containers(machine)


def _remove_containers(machine: Machine) -> None:
    if machine.engine is None:
        machine.start_engine()
    identifiers = machine.docker("ps", "-aq").split()
    if identifiers:
        machine.docker("rm", "-f", *identifiers)


def _web_page(port: int) -> bytes:
    """Return what a web server on 127.0.0.1 answers, ``b""`` while there is none."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 20) as client:
        client.settimeout(60)
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: client.recv(1 << 16), b""))
    return b""


def _start_web(machine: Machine, port: int) -> str:
    script = "echo welcome > /index.html; exec /bin/busybox httpd -f -p 80 -h /"
    return machine.docker("run", "-d", "-p", f"{port}:80", "box", "/bin/sh", "-c", script)


def test_docker_runs_containers_through_the_agent(machine: Machine) -> None:
    assert machine.docker("run", "--rm", "box", "/bin/echo", "hello") == "hello"
    data = os.urandom(3_000_000)
    address = f"unix://{machine.paths.engine_socket}"
    done = subprocess.run(
        ["docker", "-H", address, "run", "-i", "--rm", "box", "/bin/cat"],
        input=data,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


def test_a_published_port_opens_and_closes_with_its_container(machine: Machine) -> None:
    port = free_port()
    container = _start_web(machine, port)
    wait_for(lambda: b"welcome" in _web_page(port), "the page")
    machine.docker("rm", "-f", container)
    wait_for(lambda: _refused(port), "the port to close")


def test_a_port_that_is_taken_on_this_computer_fails_the_start(machine: Machine) -> None:
    address = f"unix://{machine.paths.engine_socket}"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = subprocess.run(
            ["docker", "-H", address, "run", "--name", "late", "-p", f"{port}:80", "box", "true"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 125
        assert f"Bind for 127.0.0.1:{port} failed: port is already allocated" in done.stderr
        assert "stop that program or publish another port" in done.stderr
        assert machine.docker("inspect", "-f", "{{.State.Status}}", "late") == "created"
    machine.docker("start", "late")
    machine.docker("rm", "-f", "late")


def test_another_port_is_chosen_where_this_computer_has_not_the_first(machine: Machine) -> None:
    def published() -> int:
        container = machine.docker("run", "-d", "-p", "80", "box", "/bin/sleep", "60")
        port = int(machine.docker("port", container, "80").splitlines()[0].rpartition(":")[2])
        assert not _refused(port)
        machine.docker("rm", "-f", container)
        return port

    chosen = published()
    with contextlib.ExitStack() as stack:
        taken = range(chosen + 1, chosen + 4)  # the next ones that the engine would choose
        for port in taken:
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        assert published() not in (chosen, *taken)
    assert machine.docker("ps", "-aq") == ""


def test_a_published_port_is_open_when_the_start_returns(machine: Machine) -> None:
    port = free_port()
    container = machine.docker("run", "-d", "-p", f"{port}:80", "box", "/bin/sleep", "60")
    assert not _refused(port)
    machine.docker("rm", "-f", container)
    wait_for(lambda: _refused(port), "the port to close")


def _status(machine: Machine) -> dict[str, Any]:
    return spawn.status(machine.paths, timeout_s=60).details


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 20).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it closed with this connection still in its queue
        return False
    return False


def test_ports_and_requests_survive_a_killed_engine(machine: Machine) -> None:
    port = free_port()
    container = _start_web(machine, port)
    wait_for(lambda: b"welcome" in _web_page(port), "the page")
    machine.stop_engine(signal.SIGKILL)
    assert b"welcome" in _web_page(port)
    machine.start_engine()
    assert machine.docker("inspect", "-f", "{{.State.Running}}", container) == "true"
    wait_for(lambda: _status(machine)["engine"]["answers"], "the events")
    machine.docker("rm", "-f", container)
    wait_for(lambda: _refused(port), "the port to close")


def test_ports_and_requests_survive_a_killed_connection(machine: Machine) -> None:
    port = free_port()
    container = _start_web(machine, port)
    wait_for(lambda: b"welcome" in _web_page(port), "the page")
    machine.server.kill_sessions()
    wait_for(lambda: b"welcome" in _web_page(port), "the page again")
    machine.docker("rm", "-f", container)
    wait_for(lambda: _refused(port), "the port to close")


# --- UDP ports ---------------------------------------------------------------------------------

HOST_PROGRAMS = ("-v", "/usr:/usr:ro", "-v", "/usr/lib:/lib:ro", "-v", "/usr/lib64:/lib64:ro")
"""Gives a container of BusyBox the Python of this computer."""


def _start_echo(machine: Machine, port: int, *flags: str) -> str:
    return machine.docker(
        *("run", "-d", "-p", f"{port}:53/udp", *flags, *HOST_PROGRAMS),
        *("box", "/usr/bin/python3", "-c", ECHO),
    )


class _UdpClient:
    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.connect((host, port))

    def __enter__(self) -> _UdpClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def answered(self, data: bytes) -> bool:
        """Send a datagram until it comes back, whatever else comes in between."""
        self._socket.settimeout(0.5)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # nobody is there yet: refused, or silence
                self._socket.send(data)
                while (answer := self._socket.recv(65535)) != b"echo " + data:
                    assert answer.startswith(b"echo ")
                return True
        return False


def test_datagrams_reach_a_container_and_come_back_to_their_client(machine: Machine) -> None:
    port = free_port(socket.SOCK_DGRAM)
    container = _start_echo(machine, port)
    with _UdpClient(port) as one, _UdpClient(port) as other, _UdpClient(port, "::1") as third:
        for number in range(10):
            for client, name in ((one, b"one"), (other, b"other"), (third, b"third")):
                assert client.answered(b"%b %d" % (name, number))
        for size in (0, 1, 1400, 1500, 40_000):
            assert one.answered(bytes(size)), size
        # They are flows of their own: the container sees three clients, and the connection's end
        # or the engine's takes no port away.
        machine.server.kill_sessions()
        assert one.answered(b"after a new connection")
        machine.stop_engine(signal.SIGKILL)
        assert other.answered(b"without an engine")
        machine.start_engine()
    machine.docker("rm", "-f", container)
    wait_for(lambda: not _holds_udp(port), "the port to close")
    wait_for(lambda: not _relays(machine), "the relay to end")


def test_tcp_and_udp_share_a_number(machine: Machine) -> None:
    port = free_port()
    script = "echo welcome > /index.html; /bin/busybox httpd -p 80 -h /; "
    script += f"exec /usr/bin/python3 -c '{ECHO}'"
    container = machine.docker(
        *("run", "-d", "-p", f"{port}:80/tcp", "-p", f"{port}:53/udp", *HOST_PROGRAMS),
        *("box", "/bin/sh", "-c", script),
    )
    with _UdpClient(port) as client:
        assert client.answered(b"question")
    wait_for(lambda: b"welcome" in _web_page(port), "the page")
    machine.docker("rm", "-f", container)


def test_a_udp_port_that_is_taken_on_this_computer_fails_the_start(machine: Machine) -> None:
    address = f"unix://{machine.paths.engine_socket}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        done = subprocess.run(
            ["docker", "-H", address, "run", "--rm", "-p", f"{port}:53/udp", "box", "true"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 125
        assert f"Bind for 127.0.0.1:{port} failed: port is already allocated" in done.stderr


def _holds_udp(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _relays(machine: Machine) -> bool:
    """Whether the agent's relay for UDP runs in the machine."""
    ours = Path(machine.namespace).stat().st_ino
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"relay-datagrams" in (process / "cmdline").read_bytes():
                return (process / "ns" / "net").stat().st_ino == ours
    return False


# --- this computer, from containers ------------------------------------------------------------


class _Greeting(QuietHandler):
    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        self.answer(200, {}, b"from the laptop's loopback\n")

    def do_POST(self) -> None:  # noqa: N802 - http.server's name
        self.answer(200, {}, self.rfile.read(int(self.headers["Content-Length"])))


@pytest.fixture
def service() -> Iterator[str]:
    """The port of a web server that listens on this computer's 127.0.0.1 only."""
    with HttpService(_Greeting) as service:
        yield service.address.partition(":")[2]


@pytest.mark.parametrize("network", ["bridge", "lan", "host"])
def test_containers_reach_what_listens_on_the_laptops_loopback(
    machine: Machine, service: str, network: str
) -> None:
    if network == "lan":
        machine.docker("network", "create", "lan")
    script = "for name in host.docker.internal host.desk.internal mine; do "
    script += f"wget -q -O - http://$name:{service}/; done"
    extra = ["--network", network, "--add-host", "mine:host-gateway"]
    told = machine.docker("run", "--rm", *extra, "box", "/bin/sh", "-c", script)
    assert told.splitlines() == ["from the laptop's loopback"] * 3
    if network == "lan":
        machine.docker("network", "rm", "lan")


def test_large_bodies_go_to_the_laptop_and_come_back(machine: Machine, service: str) -> None:
    script = f"""
        head -c 2000000 /dev/urandom | od -v >/sent
        wget -q -O /got --post-file /sent http://host.docker.internal:{service}/ && cmp /sent /got
        echo $?
    """
    assert machine.docker("run", "--rm", "box", "/bin/sh", "-c", script) == "0"


def test_a_port_that_nobody_has_on_the_laptop_is_an_error(machine: Machine, service: str) -> None:
    script = f"""
        exec 2>&1
        wget -q -O - http://host.docker.internal:{free_port()}/ || echo none
        wget -q -O - http://host.docker.internal:{service}/
    """
    told = machine.docker("run", "--rm", "box", "/bin/sh", "-c", script).splitlines()
    assert told[-2:] == ["none", "from the laptop's loopback"]


def test_the_way_to_the_laptop_lives_as_long_as_its_connection(
    machine: Machine, service: str
) -> None:
    script = f"timeout 20 wget -q -O - http://host.docker.internal:{service}/"
    container = machine.docker("run", "-d", "box", "/bin/sleep", "600")

    def fetched() -> bool:
        address = f"unix://{machine.paths.engine_socket}"
        command = ["docker", "-H", address, "exec", container, "/bin/sh", "-c", script]
        return b"loopback" in subprocess.run(command, capture_output=True, timeout=60).stdout

    assert fetched()
    machine.server.kill_sessions()
    wait_for(fetched, "the way after a new connection")
    machine.stop_engine(signal.SIGKILL)
    machine.start_engine()
    wait_for(fetched, "the way after a new engine")


def test_nothing_but_the_laptops_address_leads_to_it(machine: Machine, service: str) -> None:
    """Neither the relay's own port nor an internal network is a way, and the agent's socket is for
    root of the machine."""
    machine.docker("network", "create", "--internal", "closed")
    script = f"timeout 3 wget -q -O - http://192.0.0.254:{service}/ || echo none"
    command = ("run", "--rm", "--network", "closed", "box", "/bin/sh", "-c", script)
    assert machine.docker(*command).endswith("none")
    machine.docker("network", "rm", "closed")
    listing = subprocess.run(
        ["nsenter", f"--net={machine.namespace}", "ss", "-Hltnp"], capture_output=True, text=True
    )
    assert machine.engine is not None
    (line,) = [line for line in listing.stdout.splitlines() if f"pid={machine.engine.pid}," in line]
    address, _, port = line.split()[3].rpartition(":")
    assert address == "127.0.0.1"
    script = f"""
        exec 2>&1
        gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')
        nc -w 3 $gateway {port} </dev/null && echo reached
        nc -w 3 host.docker.internal {port} </dev/null
        echo done
    """
    told = machine.docker("run", "--rm", "box", "/bin/sh", "-c", script)
    assert told.splitlines()[-1] == "done"
    assert "reached" not in told
    inside = ["nsenter", f"--net={machine.namespace}", "busybox", "nc", address, port]
    done = subprocess.run(inside, input=b"GET / HTTP/1.0\r\n\r\n", capture_output=True, timeout=60)
    assert done.stdout == b""
    sockets = list(Path("/run/desk-folders").glob("*/services.sock"))
    assert sockets
    for path in sockets:
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("way", ["socket", "command"])
def test_a_client_that_vanishes_ends_its_silent_stream(machine: Machine, way: str) -> None:
    """``docker events`` that is killed leaves no process and no connection in the machine."""
    command = f"exec {sys.executable} -m deskd dial-stdio --host unix://{machine.socket}"
    socket_path = str(machine.socket) if way == "socket" else ""
    spec = AgentSpec("m", machine.server.endpoint, EngineAccess(socket_path, command))
    spawn.start(machine.paths, spec)
    wait_for(lambda: _status(machine)["engine"]["answers"], "the events")
    waiting = 2 if way == "command" else 0
    wait_for(lambda: _status(machine)["pool"]["warm"] == waiting, "warm connections")
    before = _settled(lambda: _engine_connections(machine))
    client = subprocess.Popen(
        ["docker", "-H", f"unix://{machine.paths.engine_socket}", "events"],
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: _engine_connections(machine) > before, "the stream")
    assert _settled(lambda: _engine_connections(machine)) > before
    client.kill()
    client.wait()
    wait_for(lambda: _engine_connections(machine) <= before, "the engine to see the end")
    wait_for(lambda: _status(machine)["connections"] == 0, "the agent's end")


def _settled(count: Callable[[], int]) -> int:
    """Return ``count()`` once it has been the same for half a second."""
    value, since = count(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.02)
        if count() != value:
            value, since = count(), time.monotonic()
    return value


def _engine_connections(machine: Machine) -> int:
    """Return how many sockets the engine's address has, in its namespace (net/unix, proc(5))."""
    assert machine.engine is not None
    table = Path(f"/proc/{machine.engine.pid}/net/unix").read_text().splitlines()
    return sum(line.endswith(f" {machine.socket}") for line in table)


# --- streams of desk -----------------------------------------------------------------------------


@contextlib.contextmanager
def desk(machine: Machine, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path, Path]]:
    """Run desk beside the test; yield its process and the files of its two streams."""
    out, err = machine.directory / "stdout", machine.directory / "stderr"
    program = [str(Path(sys.executable).with_name("desk"))]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [*program, "-H", f"unix://{machine.paths.engine_socket}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        yield process, out, err
    finally:
        process.kill()
        process.wait()


def lines(path: Path) -> list[str]:
    """Return the complete lines of a file, without what desk says itself."""
    whole = path.read_text().rpartition("\n")[0].splitlines()
    return [line for line in whole if not line.startswith("desk: ")]


COUNT = "i=0; while :; do echo out $i; echo err $i >&2; i=$((i+1)); sleep 0.05; done"


@pytest.mark.parametrize("more", [(), ("-t",)])
def test_followed_logs_go_on_after_a_lost_connection_and_a_killed_engine(
    machine: Machine, more: tuple[str, ...]
) -> None:
    machine.docker("run", "-d", "--name", "count", "box", "/bin/sh", "-c", COUNT)
    with desk(machine, "logs", "-f", *more, "count") as (process, out, err):

        def grown() -> None:
            before = len(lines(out))
            wait_for(lambda: len(lines(out)) > before + 10, "further lines")

        grown()
        machine.server.kill_sessions()
        grown()
        machine.stop_engine(signal.SIGKILL)
        time.sleep(0.5)
        machine.start_engine()
        grown()
        machine.docker("rm", "-f", "count")
        assert process.wait(60) == 0
        for path, word in ((out, "out"), (err, "err")):
            found = [line.split(" ", 1)[1] if more else line for line in lines(path)]
            assert found == [f"{word} {number}" for number in range(len(found))]
        assert "closed the connection; going on when it is back\n" in err.read_text()


def test_followed_events_go_on_and_come_once(machine: Machine) -> None:
    wanted: list[str] = []
    options = (
        "--since",
        str(int(time.time())),
        "--filter",
        "event=create",
        "--filter",
        "image=box",
    )
    with desk(machine, "events", *options, "--format", "{{.Actor.ID}}") as (process, out, err):
        for _ in range(3):
            if wanted:
                machine.server.kill_sessions()
            for _ in range(2):
                wanted.append(machine.docker("create", "box", "/bin/sh"))
            wait_for(lambda: wanted[-1] in lines(out), "the events")
        process.terminate()
        process.wait(60)
        assert [name for name in lines(out) if name in wanted] == wanted
        assert "going on when it is back" in err.read_text()


def test_a_followed_log_ends_where_nobody_comes_back(machine: Machine) -> None:
    machine.docker("run", "-d", "--name", "count", "box", "/bin/sh", "-c", COUNT)
    spec = AgentSpec.from_json(json.dumps(_status(machine)["spec"]))
    with desk(machine, "logs", "-f", "count") as (process, out, err):
        wait_for(lambda: lines(out), "a line")
        spawn.stop(machine.paths)
        try:
            assert process.wait(60) == 1
            told = [line for line in err.read_text().splitlines() if line.startswith("desk: ")]
            assert [line.endswith("going on when it is back") for line in told] == [True, False]
        finally:
            spawn.start(machine.paths, spec)
    wait_for(lambda: _status(machine)["engine"]["answers"], "the events")
