"""``desk env`` and ``desk-env``: point Docker's clients at a machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import click

from desk.cli import complete, render, shells
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.cli.shells import Assignment

_OLD_PROXY = "DESK_OLD_NO_PROXY"
_LOCAL = ("localhost", "127.0.0.1")


@click.command(
    "env",
    cls=DeskCommand,
    example='eval "$(desk env)"            bash, zsh, sh\n'
    "eval (desk env)               fish\n"
    "& desk env | Invoke-Expression  PowerShell",
)
@click.option("--no-proxy", is_flag=True, help="Keep this computer's own addresses off proxies.")
@click.option("--shell", metavar="SHELL", help="bash, zsh, sh, fish, powershell, cmd, tcsh, emacs.")
@click.option("-u", "--unset", is_flag=True, help="Undo it.")
@click.argument("machine", required=False, shell_complete=complete.machines)
@pass_session
def env(
    session: Session, machine: str | None, no_proxy: bool, shell: str | None, unset: bool
) -> None:
    """Print the shell code that points Docker's clients at a machine."""
    family = shells.family(shell) if shell else shells.detect()
    if unset:
        assignments = unsetting(os.environ, no_proxy=no_proxy)
    else:
        name = machine or session.machine
        session.desk.require_machine(name)
        url = session.desk.manager.url(name)
        assignments = setting(name, url, os.environ, no_proxy=no_proxy)
    typed = shells.command_as_typed(sys.argv[0], sys.argv[1:])
    render.write(shells.script(family, assignments, typed))


def setting(
    machine: str, url: str, environ: Mapping[str, str], *, no_proxy: bool
) -> list[Assignment]:
    """Return what points Docker's clients at a machine. TLS settings and a context of another
    engine would win over, or break, the plain address."""
    assignments = [
        Assignment("DOCKER_TLS_VERIFY", None),
        Assignment("DOCKER_HOST", url),
        Assignment("DOCKER_CERT_PATH", None),
        Assignment("DOCKER_CONTEXT", None),
        Assignment("DOCKER_MACHINE_NAME", machine),
    ]
    if sys.platform == "win32":
        assignments.append(Assignment("COMPOSE_CONVERT_WINDOWS_PATHS", "true"))
    if no_proxy:
        variable = _proxy_variable(environ)
        before = environ.get(variable, "")
        entries = [entry.strip() for entry in before.split(",") if entry.strip()]
        wanted = ",".join([*entries, *(name for name in _LOCAL if name not in entries)])
        assignments.append(Assignment(variable, wanted))
        if _OLD_PROXY not in environ:
            assignments.append(Assignment(_OLD_PROXY, before))
    return assignments


def unsetting(environ: Mapping[str, str], *, no_proxy: bool) -> list[Assignment]:
    """Return what undoes ``setting``; with ``no_proxy`` the old value comes back."""
    assignments = [
        Assignment(name, None)
        for name in (
            "DOCKER_TLS_VERIFY",
            "DOCKER_HOST",
            "DOCKER_CERT_PATH",
            "DOCKER_MACHINE_NAME",
        )
    ]
    if sys.platform == "win32":
        assignments.append(Assignment("COMPOSE_CONVERT_WINDOWS_PATHS", None))
    if no_proxy:
        assignments.append(Assignment(_proxy_variable(environ), environ.get(_OLD_PROXY) or None))
        assignments.append(Assignment(_OLD_PROXY, None))
    return assignments


def _proxy_variable(environ: Mapping[str, str]) -> str:
    return "no_proxy" if "no_proxy" in environ and "NO_PROXY" not in environ else "NO_PROXY"
