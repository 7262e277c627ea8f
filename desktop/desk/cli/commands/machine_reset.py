"""``desk machine reset``: a machine as new, with its name, keys and settings."""

from __future__ import annotations

import click

from desk.cli import complete, render
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session


@click.command(cls=DeskCommand, example="desk machine reset\ndesk undo")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@pass_session
def reset(session: Session, name: str | None, force: bool) -> None:
    """Give a machine an empty disk; its name, keys and settings stay.

    So do its address and its snapshots. Images, containers and volumes are gone with the disk,
    which `desk undo` brings back for a day.
    """
    machine = name or session.machine
    session.desk.require_machine(machine)
    question = f"Reset {machine}: all its images, containers and volumes go?"
    if not (force or render.confirm(question)):
        raise click.exceptions.Exit(1)
    session.desk.checkpoints.reset(machine, session.progress)
    session.progress.done(f"Machine {machine} is empty; `desk undo {machine}` brings it back.")
