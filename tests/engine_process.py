"""A real ``deskd`` for tests: roots, network namespace and cgroup of its own, and a guard that
counts what is left behind.

Nothing here imports the engine: it is met as its users meet it, over its socket.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

BUSYBOX = Path("/bin/busybox")
IMAGE = "busybox"
API = "/v1.47"
START_TIMEOUT_S = 60.0
# The guest has a newer Python than many hosts: the engine may be tested with another one.
ENGINE_PYTHON = os.environ.get("DESK_TEST_ENGINE_PYTHON", sys.executable)
REPOSITORY = Path(__file__).resolve().parents[1]


class UnixConnection(http.client.HTTPConnection):
    """``http.client`` over a unix socket."""

    def __init__(self, path: str, timeout_s: float = 60.0) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class ApiError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Api:
    """Calls of the Engine API; each opens a connection of its own."""

    def __init__(self, path: str) -> None:
        self.path = path

    def raw(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        timeout_s: float = 60.0,
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request as it is; return status, headers (lower case) and body."""
        connection = UnixConnection(self.path, timeout_s)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def call(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        timeout_s: float = 60.0,
        **query: Any,
    ) -> Any:
        """Send JSON, return JSON. Raises ``ApiError``. Filters and booleans are encoded."""
        parameters = {
            name.rstrip("_"): _encoded(value) for name, value in query.items() if value is not None
        }
        separator = "&" if "?" in path else "?"
        target = f"{API}{path}" + (separator + urlencode(parameters) if parameters else "")
        body, headers = None, {}
        if document is not None:
            body, headers = json.dumps(document), {"Content-Type": "application/json"}
        status, found, data = self.raw(method, target, body, headers, timeout_s=timeout_s)
        if status >= 400:
            raise ApiError(status, json.loads(data)["message"])
        if found.get("content-type", "").startswith("application/json") and data:
            return json.loads(data)
        return data

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, **query)

    def post(self, path: str, document: Any = None, **query: Any) -> Any:
        return self.call("POST", path, document, **query)

    def delete(self, path: str, **query: Any) -> Any:
        return self.call("DELETE", path, **query)

    def error(self, method: str, path: str, document: Any = None, **query: Any) -> ApiError:
        """Make a call that must fail; return its error."""
        try:
            answer = self.call(method, path, document, **query)
        except ApiError as error:
            return error
        raise AssertionError(f"{method} {path} succeeded: {answer!r}")

    def create(self, *command: str, name: str | None = None, **fields: Any) -> str:
        """Create a container of the test image; return its ID."""
        document = {"Image": IMAGE, "Cmd": list(command), **fields}
        identifier: str = self.post("/containers/create", document, name=name)["Id"]
        return identifier

    def run(self, *command: str, name: str | None = None, **fields: Any) -> str:
        """Create and start a container; return its ID."""
        identifier = self.create(*command, name=name, **fields)
        self.post(f"/containers/{identifier}/start")
        return identifier

    def inspect(self, container: str) -> Any:
        return self.get(f"/containers/{quote(container)}/json")

    def wait(self, container: str, **query: Any) -> int:
        """Wait for the end; return the exit code."""
        code: int = self.post(f"/containers/{container}/wait", **query)["StatusCode"]
        return code

    def logs(self, container: str, **query: Any) -> bytes:
        """Return the log without its frames."""
        parameters = {"stdout": 1, "stderr": 1, **query}
        data: bytes = self.get(f"/containers/{container}/logs", **parameters)
        return b"".join(part for _, part in frames(data))

    def output(self, *command: str, **fields: Any) -> str:
        """Run a container to its end; return what it printed."""
        identifier = self.run(*command, **fields)
        self.wait(identifier)
        return self.logs(identifier).decode()

    def check_store(self, *, deep: bool = True, repair: bool = False) -> list[dict[str, Any]]:
        """Let the engine check its store; return what is wrong."""
        status, _, data = self.raw(
            "POST", f"{API}/desk/store/check?deep={deep:d}&repair={repair:d}", timeout_s=120
        )
        lines = [json.loads(line) for line in data.splitlines()]
        assert status == 200, lines
        assert "Left" in lines[-1], f"the check did not come to its end: {lines}"
        return [line for line in lines if "Problem" in line]

    @contextlib.contextmanager
    def events(self, **query: Any) -> Iterator[Iterator[Any]]:
        """Subscribe to events; yields an iterator of them."""
        parameters = {name: _encoded(value) for name, value in query.items()}
        connection = UnixConnection(self.path)
        connection.request("GET", f"{API}/events?{urlencode(parameters)}")
        answer = connection.getresponse()
        try:
            yield (json.loads(line) for line in answer)
        finally:
            answer.close()
            connection.close()


class Hijacked:
    """A taken-over connection (attach, exec start)."""

    def __init__(
        self, path: str, target: str, document: Any = None, *, upgrade: bool = True
    ) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(60)
        self.socket.connect(path)
        body = b"" if document is None else json.dumps(document).encode()
        lines = [f"POST {API}{target} HTTP/1.1", "Host: localhost"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        if upgrade:
            lines += ["Connection: Upgrade", "Upgrade: tcp"]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        head = b""
        while b"\r\n\r\n" not in head:
            block = self.socket.recv(65536)
            assert block, f"the connection ended after {head!r}"
            head += block
        text, _, self._rest = head.partition(b"\r\n\r\n")
        self.status = int(text.split()[1])
        self.head = text.decode()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def end_input(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def read_until(self, wanted: bytes) -> bytes:
        """Read until ``wanted`` was seen; return everything."""
        while wanted not in self._rest:
            block = self.socket.recv(65536)
            assert block, f"the stream ended after {self._rest!r}"
            self._rest += block
        data, self._rest = self._rest, b""
        return data

    def read_all(self) -> bytes:
        """Read to the end of the stream."""
        parts = [self._rest]
        self._rest = b""
        while block := self.socket.recv(1 << 20):
            parts.append(block)
        return b"".join(parts)

    def close(self) -> None:
        self.socket.close()


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Split a multiplexed stream into (stream number, bytes)."""
    found, position = [], 0
    while position < len(data):
        start = position + 8
        end = start + int.from_bytes(data[position + 4 : start], "big")
        found.append((data[position], data[start:end]))
        position = end
    return found


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for something to come true; return what it came to."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return found


def _encoded(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def busybox_tar() -> bytes:
    """Return a root file system of Debian's busybox-static as a tar."""
    applets = subprocess.run(
        [str(BUSYBOX), "--list"], check=True, capture_output=True, text=True
    ).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777)):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, mode
            tar.addfile(directory)
        tar.add(BUSYBOX, "bin/busybox")
        for applet in sorted(set(applets) - {"busybox"}):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for name, text in (
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:99:99::/:/bin/sh\n"),
            ("etc/group", "root:x:0:\nnobody:x:99:\n"),
        ):
            file = tarfile.TarInfo(name)
            file.size = len(text)
            tar.addfile(file, io.BytesIO(text.encode()))
    return buffer.getvalue()


class EngineProcess:
    """One engine with everything of its own. ``start`` and ``stop`` may alternate."""

    def __init__(self, *flags: str, socket: str = "") -> None:
        self._flags = flags
        self._tag = secrets.token_hex(3)
        self.root = Path(tempfile.mkdtemp(prefix=f"deskd-{self._tag}-"))
        self.socket = socket or str(self.root / "run" / "engine.sock")
        self.namespace = f"deskd-{self._tag}"
        self.cgroup_parent = f"deskd-test-{self._tag}"
        self.log_path = self.root / "log"
        self.api = Api(self.socket)
        self.process: subprocess.Popen[bytes] | None = None
        subprocess.run(["ip", "netns", "add", self.namespace], check=True)
        subprocess.run(["ip", "-n", self.namespace, "link", "set", "lo", "up"], check=True)

    @property
    def data_root(self) -> Path:
        return self.root / "data"

    @property
    def environment(self) -> dict[str, str]:
        """The environment that makes a Docker client talk to this engine."""
        kept = {name: value for name, value in os.environ.items() if "DOCKER" not in name}
        config = self.root / "client"
        config.mkdir(exist_ok=True)
        return {**kept, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CONFIG": str(config)}

    def command(self, *flags: str) -> list[str]:
        """Return the command line of this engine."""
        return [
            *self.inside_network(ENGINE_PYTHON, "-m", "deskd"),
            *("--data-root", str(self.data_root), "--exec-root", str(self.root / "run")),
            *("--cgroup-parent", self.cgroup_parent, "--log-level", "debug"),
            *self._flags,
            *flags,
        ]

    def inside_network(self, *command: str) -> list[str]:
        """Return a command that runs in the engine's network namespace."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *command]

    def start(self, *flags: str) -> None:
        """Start the engine, with these flags besides its own, and wait for its answer."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(*flags),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.api.raw("GET", "/_ping")[0] == 200:
                    return
            assert self.process.poll() is None, f"the engine ended: {self.log()}"
            time.sleep(0.02)
        raise AssertionError(f"the engine does not answer: {self.log()}")

    def revive(self) -> None:
        """Start the engine again if an earlier test ended it: one failure shall not be many."""
        if self.process is None or self.process.poll() is not None:
            self.start()

    def load_image(self) -> None:
        """Bring the test image in."""
        self.api.raw(
            "POST",
            f"{API}/images/create?fromSrc=-&repo={IMAGE}&changes=CMD+%5B%22sh%22%5D",
            busybox_tar(),
        )

    def kill(self) -> None:
        """SIGKILL the engine, as an out-of-memory killer would; its containers stay."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)
        self.process = None

    def stop(self) -> None:
        """End the engine as a service manager would; its containers stay."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-4000:]

    def remove_everything(self) -> None:
        """Remove all containers, volumes, networks and their faults, and empty the bin."""
        for container in self.api.get("/containers/json", all=True):
            with contextlib.suppress(ApiError):  # it removes itself
                self.api.delete(f"/containers/{container['Id']}", force=True, v=True)
        until(lambda: not self.api.get("/containers/json", all=True))  # and it does
        self.api.delete("/desk/faults")
        self.api.post("/networks/prune")
        for volume in self.api.get("/volumes")["Volumes"]:  # a prune leaves those with options
            self.api.delete(f"/volumes/{volume['Name']}", force=True)
        self.api.delete("/desk/bin")

    def close(self) -> list[str]:
        """End everything; return what was left behind, in words."""
        try:
            if self.process is None:
                return []
            self.remove_everything()
            self.stop()
            return self.leftovers()
        finally:
            self._clear_away()

    def _clear_away(self) -> None:
        """Remove what an engine that failed left, so that it disturbs no other test."""
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(60)
            self.process = None
        for mount in reversed(self._mounts()):
            subprocess.run(["umount", "-l", mount], check=False)
        self._remove_cgroups()
        subprocess.run(["ip", "netns", "delete", self.namespace], check=True)
        shutil.rmtree(self.root, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """Name the processes, mounts, cgroups and interfaces of the engine that are there."""
        deadline = time.monotonic() + 60
        while True:
            found = [f"process {pid}: {_command_line(pid)}" for pid in self._processes()]
            found += [f"mount {path}" for path in self._mounts()]
            found += [f"cgroup {path}" for path in self._cgroups() if any(path.glob("*/"))]
            listed = subprocess.run(
                ["ip", "-n", self.namespace, "-json", "link"], check=True, capture_output=True
            )
            names = [link["ifname"] for link in json.loads(listed.stdout)]
            found += [f"interface {name}" for name in names if name != "lo"]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def _processes(self) -> list[int]:
        """Find processes in this engine's network namespace, its launcher or its cgroups."""
        marker = str(self.root).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                groups = (entry / "cgroup").read_text()
                if self.cgroup_parent in groups or marker in line:
                    found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        targets = [line.split()[4] for line in lines]
        return [target for target in targets if target.startswith(str(self.root))]

    def _cgroups(self) -> list[Path]:
        return [
            path
            for pattern in (self.cgroup_parent, f"*/{self.cgroup_parent}")
            for path in Path("/sys/fs/cgroup").glob(pattern)
        ]

    def _remove_cgroups(self) -> None:
        for top in self._cgroups():
            for path in sorted(top.rglob("*/"), key=lambda item: -len(item.parts)):
                with contextlib.suppress(OSError):
                    path.rmdir()
            with contextlib.suppress(OSError):
                top.rmdir()


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


@contextlib.contextmanager
def running_engine(*flags: str, socket: str = "") -> Iterator[EngineProcess]:
    """Run an engine with the test image; nothing may be left behind at the end. ``socket`` is
    where it answers, if ``flags`` say another place than usual."""
    engine = EngineProcess(*flags, socket=socket)
    try:
        engine.start()
        engine.load_image()
        yield engine
    finally:
        left = engine.close()
    assert not left, f"left behind by the engine: {left}"


def docker_cli() -> str:
    """Return the docker CLI to test with: the one on PATH."""
    found = shutil.which("docker")
    assert found is not None, "the tests need the docker CLI: install Debian's docker-cli"
    return found


def run_docker(
    engine: EngineProcess, *arguments: str, stdin: bytes = b"", timeout_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run a docker command against ``engine``; return its result as text."""
    words: Sequence[str] = [docker_cli(), *arguments]
    done = subprocess.run(
        words, input=stdin, capture_output=True, env=engine.environment, timeout=timeout_s
    )
    return subprocess.CompletedProcess(
        words, done.returncode, done.stdout.decode(), done.stderr.decode()
    )
