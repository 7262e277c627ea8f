"""The README's tour as a stranger takes it: `packaging/up`, then `desk` and `docker` by hand."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pexpect
import pytest
from tests.datagram_echo import ECHO
from tests.free_ports import free_port
from tests.http_service import HttpService, QuietHandler

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = REPOSITORY / ".venv" / "bin"
PROMPT_DEADLINE_S = 120


class Stranger:
    """Someone with a shell, a DESK_HOME of their own and the checkout's commands on the PATH."""

    def __init__(self, home: Path) -> None:
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")
        }
        self.environment["DESK_HOME"] = str(home)
        self.environment["PATH"] = f"{BIN}:{os.environ['PATH']}"
        self.environment["TERM"] = "xterm"

    def types(
        self, line: str, *, code: int = 0, timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Type a line into bash; check its exit code."""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            env=self.environment,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == code, f"$ {line}\n{done.stdout}\n{done.stderr}"
        return done

    def out(self, line: str, *, timeout_s: float = 300) -> str:
        """Type a line; return what it printed on standard output."""
        return self.types(line, timeout_s=timeout_s).stdout.strip()

    def terminal(self, command: str, arguments: Sequence[str]) -> pexpect.spawn[str]:
        """Start a command on a terminal of 80 columns."""
        return pexpect.spawn(
            command,
            list(arguments),
            env=self.environment,
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=PROMPT_DEADLINE_S,
        )


def page(port: int) -> str:
    """Get the page at a port of this computer, as soon as there is one."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
                text: str = answer.read().decode()
                return text
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def processes_below(home: Path) -> str:
    """Return the processes that name ``home`` in their command line."""
    words = ["pgrep", "-a", "-f", str(home)]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="module")
def stranger() -> Iterator[Stranger]:
    # Not below pytest's directory: the paths of Unix sockets may have 107 characters.
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    someone = Stranger(home)
    try:
        done = someone.types("packaging/up", timeout_s=1000)
        assert "desk run" in done.stdout
        yield someone
        someone.types("desk machine rm -f default", timeout_s=120)
        # An interpreter that has given up its lock may still be on its last steps.
        deadline = time.monotonic() + 60
        while left := processes_below(home):
            assert time.monotonic() < deadline, f"processes of the removed machine: {left}"
            time.sleep(0.1)
    finally:
        for pid_file in home.glob("machines/*/*.pid"):
            subprocess.run(["kill", "-9", pid_file.read_text().strip()], check=False)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def trixie(stranger: Stranger) -> str:
    """Import a Debian root file system with nginx in it, piped from mmdebstrap."""
    stranger.types(
        "mmdebstrap --quiet --variant=minbase --include=nginx-light trixie -"
        " | desk import - trixie",
        timeout_s=900,
    )
    return "trixie"


@pytest.fixture(autouse=True)
def _containers_go(stranger: Stranger) -> Iterator[None]:
    """Remove what a failed test left, so that its names are free in a second run."""
    yield
    with contextlib.suppress(AssertionError):  # the machine may be down
        for container in stranger.out("desk ps -aq").split():
            stranger.types(f"desk rm -f {container}")


def test_a_second_up_changes_nothing(stranger: Stranger) -> None:
    before = stranger.out("desk machine ls")
    pid = next(Path(stranger.environment["DESK_HOME"]).glob("machines/default/qemu.pid"))
    process = pid.read_text()
    stranger.types("packaging/up")
    assert stranger.out("desk machine ls") == before
    assert pid.read_text() == process


def test_debian_gives_a_prompt_with_the_containers_id(stranger: Stranger, trixie: str) -> None:
    terminal = stranger.terminal(
        str(BIN / "desk"), ["run", "-it", "--name", "shell", trixie, "bash"]
    )
    terminal.expect(r"root@([0-9a-f]{12}):/# ")
    host_name = terminal.match.group(1)
    terminal.sendline("tput cols; . /etc/os-release; echo $VERSION_CODENAME; exit 7")
    terminal.expect("80\r\n")
    terminal.expect("trixie\r\n")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 7
    assert stranger.out("desk inspect -f '{{.Id}}' shell").startswith(host_name)
    stranger.types("desk rm shell")


def test_nginx_serves_the_laptop_through_the_machine(stranger: Stranger, trixie: str) -> None:
    port = free_port()
    stranger.types(f"desk run -d --name web -p {port}:80 {trixie} nginx -g 'daemon off;'")
    assert "Welcome to nginx" in page(port)
    assert f":{port}->80/tcp" in stranger.out("desk ps")
    stranger.types("desk rm -f web")
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                break
        assert time.monotonic() < deadline, "the port stayed open after the container's end"
        time.sleep(0.1)


class _Greeting(QuietHandler):
    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        self.answer(200, {}, b"from the laptop's loopback")


def test_containers_reach_what_listens_on_the_laptops_loopback(stranger: Stranger) -> None:
    stranger.types("desk network create lan")
    with HttpService(_Greeting) as service:
        port = service.address.partition(":")[2]
        for host in ("host.docker.internal", "host.desk.internal", "mine"):
            for network in ("bridge", "lan", "host"):
                flags = f"--network {network} --add-host mine:host-gateway"
                line = f"desk run --rm {flags} busybox wget -qO- http://{host}:{port}/"
                assert stranger.out(line) == "from the laptop's loopback", line
    # Nothing listens there any more, and the container is told so.
    refused = stranger.types(f"desk run --rm busybox nc -w 9 host.docker.internal {port}", code=1)
    assert "refused" in refused.stderr
    stranger.types("desk network rm lan")


def test_datagrams_reach_a_container_in_the_machine(stranger: Stranger) -> None:
    port = free_port(socket.SOCK_DGRAM)
    # The machine's own Python, in a container of BusyBox.
    programs = "-v /usr:/usr:ro -v /usr/lib:/lib:ro -v /usr/lib64:/lib64:ro"
    command = shlex.join(["/usr/bin/python3.13", "-I", "-S", "-c", ECHO])
    stranger.types(f"desk run -d --name echo -p {port}:53/udp {programs} busybox {command}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port))
        client.settimeout(2)
        answer = b""
        deadline = time.monotonic() + 120
        while answer != b"echo hello":
            assert time.monotonic() < deadline, stranger.out("desk logs echo")
            with contextlib.suppress(OSError):  # until the server is there
                client.send(b"hello")
                answer = client.recv(100)
    stranger.types("desk rm -f echo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                other.bind(("127.0.0.1", port))
                break
            assert time.monotonic() < deadline, "the port stayed open after the container's end"
            time.sleep(0.1)
        # What is taken on the laptop fails the start, and says why.
        done = stranger.types(f"desk run --rm -p {port}:53/udp busybox true", code=125)
        assert f"port 127.0.0.1:{port} is in use by another program" in done.stderr
        done = stranger.types(
            f'eval "$(desk-env)" && docker run --rm -p {port}:53/udp busybox true', code=125
        )
        assert f"Bind for 127.0.0.1:{port} failed: port is already allocated" in done.stderr


def test_the_docker_cli_is_at_home(stranger: Stranger) -> None:
    def docker(line: str) -> str:
        return stranger.out(f'eval "$(desk-env)" && {line}')

    assert "1.47" in docker("docker version")
    assert "overlay" in docker("docker info")
    assert docker("docker run --rm busybox echo hello") == "hello"
    name = docker("docker run -d --name worker busybox sh -c 'while :; do date; sleep 1; done'")
    assert re.fullmatch(r"[0-9a-f]{64}", name)
    assert "worker" in docker("docker ps -a")
    followed = docker("(docker logs -f worker || true) | head -n 2")
    assert followed.count("\n") == 1
    assert docker("docker exec worker hostname") == name[:12]
    docker("echo carried >/tmp/desk-carried && docker cp /tmp/desk-carried worker:/tmp/in")
    assert docker("docker exec worker cat /tmp/in; rm -f /tmp/desk-carried") == "carried"
    assert docker("docker cp worker:/tmp/in - | tar -xO") == "carried"
    docker("docker kill worker")
    assert docker("docker wait worker") == "137"
    assert docker("docker inspect -f '{{.State.ExitCode}}' worker") == "137"
    docker("docker rm worker")
    assert "busybox" in docker("docker images")


def test_docker_on_a_terminal(stranger: Stranger) -> None:
    line = 'eval "$(desk-env)" && docker run --rm -it busybox sh'
    terminal = stranger.terminal("bash", ["-c", line])
    terminal.expect("/ # ")
    terminal.sendline("echo sum $((40 + 2))")
    terminal.expect("sum 42")
    terminal.expect("/ # ")
    terminal.sendline("exit 3")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 3


def test_containers_are_back_after_a_restart(stranger: Stranger) -> None:
    stranger.types("desk run -d --name lasting --restart always busybox sleep 100000")
    stranger.types("desk run -d --name plain --stop-timeout 0 busybox sleep 100000")
    stranger.types("desk run -d --rm --name frozen --stop-timeout 0 busybox sleep 100000")
    stranger.types("desk pause frozen")
    lines = [line.split() for line in stranger.out("desk machine restart").splitlines()]
    assert lines == [
        ["CONTAINER", "BEFORE", "AFTER"],
        ["lasting", "running", "running"],
        ["plain", "running", "running"],
        ["frozen", "paused", "paused"],
    ]
    assert "lasting" in stranger.out("desk ps")
    address = stranger.out("desk machine url")
    assert stranger.out('eval "$(desk-env)" && echo $DOCKER_HOST') == address
    stranger.types("desk rm -f lasting plain frozen")


def test_down_and_a_run_that_starts_the_machine_again(stranger: Stranger) -> None:
    stranger.types("desk down")
    assert "Stopped" in stranger.out("desk machine ls")
    refused = stranger.types("desk ps", code=1)
    assert len(refused.stderr.strip().splitlines()) <= 2
    assert "desk machine start default" in refused.stderr
    assert stranger.out("desk run --rm busybox echo again") == "again"


def test_a_mistyped_command_names_the_nearest(stranger: Stranger) -> None:
    done = stranger.types("desk imags", code=1)
    assert "images" in done.stderr
    assert done.stdout == ""
