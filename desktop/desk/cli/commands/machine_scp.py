"""``desk machine scp``: OpenSSH's scp, between this computer and machines, and between machines."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.errors import DeskError, MachineError, UsageError
from desk.machine.model import State
from desk.ssh.endpoint import Endpoint

_PLACE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*):(.*)\Z", re.DOTALL)


@click.command(
    cls=DeskCommand,
    example="desk machine scp notes.txt default:/var/lib/desk/local/\n"
    "desk machine scp -r default:/etc/desk work:/root",
)
@click.option("-r", "--recursive", is_flag=True, help="Copy directories with what is in them.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.argument("source", metavar="[MACHINE:]PATH")
@click.argument("target", metavar="[MACHINE:]PATH")
@pass_session
def scp(session: Session, source: str, target: str, recursive: bool, quiet: bool) -> None:
    """Copy files between this computer and machines, or between machines."""
    from desk.machine.openssh import ssh_config

    places = [split_place(source), split_place(target)]
    names = [machine for machine, _path in places if machine]
    if not names:
        raise UsageError("neither place is in a machine", hint="Write one of them as MACHINE:PATH.")
    program = shutil.which("scp")
    if program is None:
        raise DeskError("scp is not installed", hint="Install the OpenSSH client.")
    hosts = {f"desk-{name}": running_endpoint(session, name) for name in names}
    words = [f"desk-{machine}:{path}" if machine else path for machine, path in places]
    options = ["-3"] + ["-r"] * recursive + ["-q"] * quiet
    with tempfile.TemporaryDirectory(prefix="desk-scp-") as directory:
        file = Path(directory) / "config"
        file.write_text(ssh_config(hosts), "utf-8")
        done = subprocess.run([program, "-F", str(file), *options, "--", *words], check=False)
    raise click.exceptions.Exit(done.returncode)


def split_place(place: str) -> tuple[str, str]:
    """Return the machine and the path; no machine for a path of this computer."""
    match = _PLACE.match(place)
    if match is None or (sys.platform == "win32" and len(match[1]) == 1):
        # A name with a colon in it stays a name, as ``./a:b`` does for scp itself.
        return "", place
    if match[1] == "localhost":
        return "", match[2] or "."
    return match[1], match[2]


def running_endpoint(session: Session, name: str) -> Endpoint:
    """Return where the sshd of a machine is; raises what says why it cannot be reached."""
    session.desk.require_machine(name)
    manager = session.desk.manager
    endpoint = manager.endpoint(name)
    state = manager.open(name).driver.state()
    if state is not State.RUNNING:
        raise MachineError(
            f"machine {name} is {state.value.lower()}",
            hint=f"`desk machine start {name}` starts it.",
        )
    return endpoint
