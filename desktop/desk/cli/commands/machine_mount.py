"""``desk machine mount``: a directory of a machine on this computer, by sshfs."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click

from desk.cli import render
from desk.cli.commands.machine_scp import running_endpoint, split_place
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.errors import DriverError, UsageError
from desk.whole_file import replace_file

_HINTS = {
    "linux": "Install it: `apt install sshfs` on Debian and Ubuntu, `dnf install fuse-sshfs` on"
    " Fedora.",
    "darwin": "Install macFUSE and sshfs from macfuse.github.io.",
    "win32": "`desk machine scp` copies files instead.",
}


@click.command(
    cls=DeskCommand,
    example="desk machine mount default:/var/lib/desk/local ./local\ndesk machine mount -u ./local",
)
@click.option("-u", "--unmount", is_flag=True, help="End the mount at PATH.")
@click.argument("place", metavar="MACHINE:[PATH]")
@click.argument("path", metavar="[PATH]", required=False)
@pass_session
def mount(session: Session, place: str, path: str | None, unmount: bool) -> None:
    """Mount a directory of a machine on this computer, or end that."""
    if unmount:
        # As with docker-machine, MACHINE:PATH may stand before the place here.
        _unmount(Path(path or place))
        return
    name, directory = split_place(place)
    if not name:
        raise UsageError(
            f"{place} is not in a machine",
            hint="Write MACHINE:PATH. The other way round needs no mount: machines have this"
            " computer's folders at the same paths (`desk machine set share-folder=…`).",
        )
    target = Path(path or directory or ".").absolute()
    if not target.is_dir():
        raise UsageError(f"{target} is no directory", hint="Make it first, and leave it empty.")
    program = shutil.which("sshfs")
    if program is None:
        raise DriverError("sshfs is not installed", hint=_HINTS.get(sys.platform, "Install it."))
    from desk.machine.openssh import ssh_config

    # sshfs splits a command at blanks whatever is quoted, so what ssh is told stands in a file; it
    # stays, for each new connection.
    alias, file = f"desk-{name}", session.desk.home.machine(name).ssh_config
    hosts = {alias: running_endpoint(session, name)}
    replace_file(file, ssh_config(hosts).encode())
    done = subprocess.run(
        [program, "-F", str(file), f"{alias}:{directory}", str(target), "-o", "reconnect"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise DriverError(
            f"{directory or 'the home directory'} of machine {name} cannot be mounted on"
            f" {target}: {words}",
            hint=f"Look whether it is there: `desk machine ssh {name} ls -ld"
            f" {shlex.quote(directory or '.')}`.",
        )
    ends = f"desk machine mount -u {shlex.quote(str(target))}"
    render.note(f"{name}:{directory} is on {target}. `{ends}` ends that.")


def _unmount(target: Path) -> None:
    fuse = shutil.which("fusermount3") or shutil.which("fusermount")
    argv = [fuse, "-u", str(target)] if fuse is not None else ["umount", str(target)]
    done = subprocess.run(argv, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise DriverError(
            f"{target} cannot be unmounted: {words}",
            hint="Close what is open in it, and leave it with every shell.",
        )
