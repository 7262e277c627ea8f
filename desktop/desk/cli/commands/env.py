"""``desk env`` and ``desk-env``: point Docker's clients at a machine."""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
from collections.abc import Mapping, Sequence

import click

from desk.cli import complete, render, shells
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.cli.shells import Assignment
from desk.errors import DeskError, UsageError

_BEFORE = "DESK_ENV_BEFORE"
"""What the variables were before: base64 of JSON, which no shell reads anything into. A variable
that was not set is null."""

_DOCKER = (
    "DOCKER_TLS_VERIFY",
    "DOCKER_HOST",
    "DOCKER_CERT_PATH",
    "DOCKER_CONTEXT",
    "DOCKER_MACHINE_NAME",
)
_WINDOWS = "COMPOSE_CONVERT_WINDOWS_PATHS"
_LOCAL = ("localhost", "127.0.0.1")

Before = dict[str, str | None]


@click.command(
    "env",
    cls=DeskCommand,
    example='eval "$(desk env)"            bash, zsh, sh\n'
    "eval (desk env)               fish\n"
    "& desk env | Invoke-Expression  PowerShell\n"
    "execx($(desk env))            xonsh\n"
    "desk env --check",
)
@click.option("--no-proxy", is_flag=True, help="Keep this computer's own addresses off proxies.")
@click.option(
    "--shell",
    metavar="SHELL",
    help="bash, zsh, sh, fish, powershell, cmd, tcsh, nu, xonsh, emacs.",
)
@click.option("-u", "--unset", is_flag=True, help="Set everything as it was before.")
@click.option("--check", is_flag=True, help="Say whether Docker's clients reach the machine.")
@click.argument("machine", required=False, shell_complete=complete.machines)
@pass_session
def env(
    session: Session,
    machine: str | None,
    no_proxy: bool,
    shell: str | None,
    unset: bool,
    check: bool,
) -> None:
    """Print the shell code that points Docker's clients at a machine."""
    if check and unset:
        raise UsageError("--check and --unset exclude each other", hint="Give one of them.")
    family = shells.family(shell) if shell else shells.detect()
    typed = shells.command_as_typed(sys.argv[0], sys.argv[1:])
    if unset:
        assignments = unsetting(os.environ)
    else:
        name = machine or session.machine
        session.desk.require_machine(name)
        url = session.desk.machine_url(name)
        own = tuple(session.desk.machine_url(each) for each in session.desk.manager.names())
        assignments = setting(name, url, os.environ, no_proxy=no_proxy, own=own)
        if check:
            _check(session, name, url, typed)
            return
    if not changes(assignments, os.environ):
        if sys.stdout.isatty():  # somebody looks at it, and would wonder
            render.note("This shell is set like that already.")
        return
    render.write(shells.script(family, assignments, typed))


def _check(session: Session, machine: str, url: str, typed: Sequence[str]) -> None:
    """Raise where Docker's clients of this shell do not reach the machine's engine."""
    wrong = [
        f"{name} is {os.environ[name]}" if name in os.environ else f"{name} is not set"
        for name, value in (
            ("DOCKER_HOST", url),
            ("DOCKER_CONTEXT", None),
            ("DOCKER_TLS_VERIFY", None),
            ("DOCKER_CERT_PATH", None),
        )
        if os.environ.get(name) != value
    ]
    if wrong:
        again = " ".join(word for word in typed if word != "--check")
        raise DeskError(
            f"Docker's clients of this shell do not use machine {machine}: {', '.join(wrong)}",
            hint=f"`{again}` prints what sets them, and how to run it.",
        )
    with session.desk.client_for_url(url) as client:
        client.system.ping()
    render.note(f"Docker's clients of this shell use machine {machine}.")


def setting(
    machine: str,
    url: str,
    environ: Mapping[str, str],
    *,
    no_proxy: bool,
    own: Sequence[str] = (),
) -> list[Assignment]:
    """Return what points Docker's clients at a machine. TLS settings and a context of another
    engine would win over, or break, the plain address.

    What was set before is kept for ``unsetting``, but for what Desk set itself: ``own`` are the
    addresses of its machines.
    """
    before = recalled(environ)
    if before is None:
        is_own = environ.get("DOCKER_HOST") in {url, *own}
        before = {} if is_own else {name: environ[name] for name in _DOCKER if name in environ}
    assignments = [
        Assignment("DOCKER_TLS_VERIFY", None),
        Assignment("DOCKER_HOST", url),
        Assignment("DOCKER_CERT_PATH", None),
        Assignment("DOCKER_CONTEXT", None),
        Assignment("DOCKER_MACHINE_NAME", machine),
    ]
    if sys.platform == "win32":
        assignments.append(Assignment(_WINDOWS, "true"))
    if no_proxy:
        variable = _proxy_variable(environ)
        before.setdefault(variable, environ.get(variable))
        entries = [e.strip() for e in environ.get(variable, "").split(",") if e.strip()]
        wanted = ",".join([*entries, *(name for name in _LOCAL if name not in entries)])
        assignments.append(Assignment(variable, wanted))
    if before:
        assignments.append(Assignment(_BEFORE, _kept(before)))
    return assignments


def unsetting(environ: Mapping[str, str]) -> list[Assignment]:
    """Return what undoes ``setting``: each variable has its old value again, or none."""
    before = recalled(environ) or {}
    names = dict.fromkeys([*_DOCKER, *([_WINDOWS] if sys.platform == "win32" else []), *before])
    return [*(Assignment(name, before.get(name)) for name in names), Assignment(_BEFORE, None)]


def changes(assignments: Sequence[Assignment], environ: Mapping[str, str]) -> bool:
    """Whether the assignments would change anything."""
    return any(environ.get(each.name) != each.value for each in assignments)


def _kept(before: Before) -> str:
    return base64.urlsafe_b64encode(json.dumps(before, sort_keys=True).encode()).decode()


def recalled(environ: Mapping[str, str]) -> Before | None:
    """Return what was kept; ``None`` where nothing was, or where it cannot be read."""
    try:
        found = json.loads(base64.urlsafe_b64decode(environ[_BEFORE]))
    except (KeyError, ValueError, binascii.Error):
        return None
    known = {*_DOCKER, _WINDOWS, "NO_PROXY", "no_proxy"}
    if not isinstance(found, dict) or not found.keys() <= known:
        return None
    return {name: None if value is None else str(value) for name, value in found.items()}


def _proxy_variable(environ: Mapping[str, str]) -> str:
    return "no_proxy" if "no_proxy" in environ and "NO_PROXY" not in environ else "NO_PROXY"
