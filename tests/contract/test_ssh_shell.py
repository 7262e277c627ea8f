"""The interactive shell on a real terminal, through a real sshd."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pexpect
from tests.ssh_server import SshServer, ssh_server  # noqa: F401 - a fixture

_CLIENT = """
import json, pathlib, sys
from desk.ssh.endpoint import Endpoint
from desk.ssh.session import Session
from desk.ssh.shell import interact
fields = json.loads(sys.argv[1])
for name in ("private_key", "known_hosts"):
    fields[name] = pathlib.Path(fields[name])
with Session.connect(Endpoint(**fields)) as session:
    code = interact(session, *sys.argv[2:])
print("left with", code)
"""


def _arguments(server: SshServer, *command: str) -> list[str]:
    endpoint = server.endpoint
    fields = {name: str(getattr(endpoint, name)) for name in ("host", "user")}
    paths = {name: str(getattr(endpoint, name)) for name in ("private_key", "known_hosts")}
    return ["-c", _CLIENT, json.dumps({**fields, **paths, "port": endpoint.port}), *command]


def test_a_shell_has_our_terminal_its_size_and_its_keys(ssh_server: SshServer) -> None:  # noqa: F811
    arguments = _arguments(ssh_server, "exec /bin/bash --norc --noprofile")
    child = pexpect.spawn(sys.executable, arguments, dimensions=(33, 77), timeout=60)
    child.expect(r"[#$] ")
    child.sendline("stty size")
    child.expect("33 77")
    child.setwinsize(20, 60)
    child.sendline("sleep 0.3; stty size")
    child.expect("20 60")
    child.sendline("sh -c 'echo started; exec sleep 100'")
    # The line's own echo has no line break before the word; the running program's output has.
    child.expect(r"[\r\n]started")
    child.sendintr()
    child.expect(r"[#$] ")
    child.sendline("echo interrupted $?")
    child.expect("interrupted 130")
    child.sendline("exit 7")
    child.expect("left with 7")
    child.expect(pexpect.EOF)
    child.close()


def test_without_a_terminal_bytes_and_exit_code_pass(
    ssh_server: SshServer,  # noqa: F811
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, *_arguments(ssh_server, "cat; echo oops >&2; exit 5")],
        input=b"\x00\xffbytes\n",
        capture_output=True,
        timeout=60,
    )
    assert done.stdout == b"\x00\xffbytes\nleft with 5\n"
    assert done.stderr == b"oops\n"
