"""Making machines, and making anew what belongs to them: ``desk machine create``, ``provision``."""

from __future__ import annotations

from typing import Any

import click

from desk.cli import complete
from desk.cli.framework import DeskCommand
from desk.cli.machine_flags import machine_flags, new_spec
from desk.cli.session import Session, pass_session
from desk.machine.model import check_name


@click.command(
    cls=DeskCommand,
    example="desk machine create --memory 4g --cpus 4 big\n"
    "desk machine create --engine-opt icc=false --engine-label zone=a lab",
)
@machine_flags
@click.argument("name", metavar="[MACHINE]", required=False)
@pass_session
def create(session: Session, name: str | None, **flags: Any) -> None:
    """Create a machine."""
    machine_name = check_name(name or session.machine)
    spec = new_spec(machine_name, flags, session.desk.settings.defaults)
    session.desk.manager.create(spec, session.progress)
    session.progress.done(
        f"Created machine {machine_name}. `desk machine start {machine_name}` starts it."
    )


@click.command(cls=DeskCommand, example="desk machine provision")
@click.argument("names", metavar="[MACHINE]...", nargs=-1, shell_complete=complete.machines)
@pass_session
def provision(session: Session, names: tuple[str, ...]) -> None:
    """Make keys, certificates and the engine's settings anew."""
    from desk.machine.provisioning import provision as again

    for name in names or (session.machine,):
        session.desk.require_machine(name)
        restarted = again(session.desk.manager, name, session.progress)
        session.progress.done(
            f"Provisioned machine {name}{' and restarted it' if restarted else ''}."
        )
