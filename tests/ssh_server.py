"""A real OpenSSH server for tests: own configuration, own host key, 127.0.0.1 only.

Use the fixture ``ssh_server`` by importing it, or ``SshServer`` as a context manager. The server
knows one login, the user who runs the tests, with the key in ``endpoint``.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from desk.ssh.endpoint import Endpoint
from desk.ssh.keys import KeyPair, generate_key_pair, write_key_pair, write_known_hosts
from tests.free_ports import free_port

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
_PRIVILEGE_SEPARATION_DIRECTORY = Path("/run/sshd")


class SshServer:
    """One sshd with its files in ``directory``; ``options`` are extra lines of sshd_config.

    With ``namespace`` (the path of a network namespace; needs root) its connections live in
    there, as if in a machine of their own, while its port stays on this side.
    """

    def __init__(
        self, directory: Path, *, options: tuple[str, ...] = (), namespace: str = ""
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.host_key: KeyPair = generate_key_pair("test host")
        self.client_key: KeyPair = generate_key_pair("test client")
        self._options = options
        self._namespace = namespace
        self._process: subprocess.Popen[bytes] | None = None
        write_key_pair(self.host_key, directory / "host_key", directory / "host_key.pub")
        write_key_pair(self.client_key, directory / "id_ed25519", directory / "id_ed25519.pub")
        write_known_hosts(directory / "known_hosts", "127.0.0.1", self.port, self.host_key.public)
        (directory / "authorized_keys").write_text(self.client_key.public + "\n")
        (directory / "authorized_keys").chmod(0o600)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(
            host="127.0.0.1",
            port=self.port,
            user=self.user,
            private_key=self.directory / "id_ed25519",
            known_hosts=self.directory / "known_hosts",
        )

    @property
    def log(self) -> Path:
        return self.directory / "sshd.log"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not started"
        return self._process.pid

    def start(self) -> None:
        """Start sshd and wait until it answers."""
        assert self._process is None, "the server runs already"
        if os.geteuid() == 0:
            _PRIVILEGE_SEPARATION_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
        config = self.directory / "sshd_config"
        lines = (
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.directory / 'host_key'}",
            f"AuthorizedKeysFile {self.directory / 'authorized_keys'}",
            "PidFile none",
            "UsePAM no",
            "StrictModes no",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "MaxStartups 100",
            "MaxSessions 256",
            "UseDNS no",
            "PrintMotd no",
            "PrintLastLog no",
            "Subsystem sftp internal-sftp",
            # bash reads ~/.bashrc when sshd starts it, but not at a deeper level. What a person has
            # in there takes long, and must not be killed in the middle.
            "SetEnv SHLVL=2",
            *self._options,
        )
        # The first occurrence of an option counts, so extra options replace these.
        first = {line.split()[0].lower(): line for line in reversed(lines)}
        overridden = {line.split()[0].lower(): line for line in self._options}
        config.write_text("\n".join({**first, **overridden}.values()) + "\n")
        command = [SSHD, "-D", "-e", "-f", str(config)]
        if self._namespace:
            each = f"nsenter --net={self._namespace} {SSHD} -i -e -f {config}"
            listen = f"TCP-LISTEN:{self.port},bind=127.0.0.1,reuseaddr,fork,nodelay"
            command = ["socat", listen, f"EXEC:{each},nofork"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                    if probe.recv(4) == b"SSH-":
                        return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"sshd does not start: {self.log.read_text()}")
            time.sleep(0.02)

    def session_pids(self) -> list[int]:
        """Return the server's processes for present connections."""
        return [pid for pid in _descendants(self.pid) if _command(pid).startswith("sshd")]

    def kill_sessions(self) -> None:
        """End every present connection with SIGKILL; the server goes on listening."""
        for pid in self.session_pids():
            _kill(pid)

    def kill_commands(self, name: str) -> int:
        """End the commands called ``name`` that run in connections; return how many there were."""
        pids = [pid for pid in _descendants(self.pid) if _command(pid).split(" ")[0] == name]
        for pid in pids:
            _kill(pid)
        return len(pids)

    def stop(self) -> None:
        """End the server, its connections and the commands that run in them; idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        family = _descendants(process.pid)
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in family:
            _kill(pid)

    def restart(self) -> None:
        self.stop()
        self.start()

    def change_host_key(self) -> KeyPair:
        """Show another host key from now on, as an impostor would; known_hosts stays."""
        self.stop()
        self.host_key = generate_key_pair("another host")
        write_key_pair(self.host_key, self.directory / "host_key")
        self.start()
        return self.host_key

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


@pytest.fixture
def ssh_server(tmp_path: Path) -> Iterator[SshServer]:
    """A running sshd that accepts ``ssh_server.endpoint``."""
    with SshServer(tmp_path / "sshd") as server:
        yield server
