"""``desk up`` and ``desk down``."""

from __future__ import annotations

from typing import Any

import click

from desk.cli import complete, options, render
from desk.cli.framework import DeskCommand
from desk.cli.machine_flags import given, machine_flags, new_spec
from desk.cli.session import Session, pass_session
from desk.errors import Conflict
from desk.machine.model import MachineSpec, check_name
from desk.settings import DEFAULT_MACHINE


@click.command(cls=DeskCommand, example="desk up\ndesk up --name big --memory 8g --cpus 4")
@machine_flags
@click.option(
    "--name", metavar="NAME", shell_complete=complete.machines, help="Machine (the active one)."
)
@pass_session
def up(session: Session, name: str | None, **flags: Any) -> None:
    """Create the machine if there is none, and start it."""
    machine = check_name(name or session.machine)
    manager = session.desk.manager
    spec = new_spec(machine, flags, session.desk.settings.defaults)
    if not manager.exists(machine) and _create(session, spec):
        session.progress.done(f"Created machine {machine}.")
    else:
        _check_same(manager.inspect(machine), given(flags), machine)
    report = manager.start(machine, session.progress)
    took = f" ({report.total_s:.1f} s)" if report.stages else ""
    session.progress.done(f"Machine {machine} is running{took}.")
    argument = "" if machine == DEFAULT_MACHINE else f" {machine}"
    option = "" if machine == session.machine else f" -m {machine}"
    # Desk's own guest brings busybox along; an engine on somebody's Linux begins without an image.
    own_guest = manager.inspect(machine)["features"]["has_console"]
    first = "run -it --rm busybox sh" if own_guest else "import ROOTFS.tar NAME"
    render.out(
        f'Try:  desk{option} {first}\nUse Docker\'s clients with it:  eval "$(desk-env{argument})"'
    )


def _create(session: Session, spec: MachineSpec) -> bool:
    """Create the machine; return whether it was this command, and not another one meanwhile."""
    try:
        session.desk.manager.create(spec, session.progress)
    except Conflict:
        if not session.desk.manager.exists(spec.name):
            raise
        return False
    return True


def _check_same(details: dict[str, Any], wanted: dict[str, Any], machine: str) -> None:
    """Refuse flags that would change a machine that exists."""
    for field, value in wanted.items():
        if details[field] != value:
            flag = field.partition("_")[0]
            raise Conflict(
                f"machine {machine} exists already, with {field} {details[field]}, not {value}",
                hint=f"Leave --{flag} out, choose another --name, or remove the machine and its"
                f" data with `desk machine rm {machine}`.",
            )


@click.command(cls=DeskCommand, example="desk down")
@options.grace_period
@click.argument("machine", required=False, shell_complete=complete.machines)
@pass_session
def down(session: Session, machine: str | None, grace_s: float) -> None:
    """Stop the machine."""
    name = machine or session.machine
    session.desk.require_machine(name)
    session.desk.manager.stop(name, session.progress, grace_s=grace_s)
    session.progress.done(f"Machine {name} is stopped.")
