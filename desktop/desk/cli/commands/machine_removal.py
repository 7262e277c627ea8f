"""``desk machine rm``: what is a machine by itself can be brought back for a day."""

from __future__ import annotations

import click

from desk.cli import complete, render
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.errors import DeskError


@click.command(cls=DeskCommand, example="desk machine rm old\ndesk undo old")
@click.option("-f", "--force", is_flag=True, help="Remove damaged ones too; do not ask.")
@click.option("-y", "yes", is_flag=True, help="Do not ask.")
@click.argument(
    "names", metavar="MACHINE...", nargs=-1, required=True, shell_complete=complete.machines
)
@pass_session
def rm(session: Session, names: tuple[str, ...], force: bool, yes: bool) -> None:
    """Remove machines and everything in them."""
    for name in names:
        session.desk.require_machine(name)
    if not (force or yes):
        which = ", ".join(names)
        if not render.confirm(f"Remove {which} with all images, containers and volumes?"):
            raise click.exceptions.Exit(1)
    for name in names:
        if _goes_into_bin(session, name, force=force):
            session.progress.done(f"Removed machine {name}; `desk undo {name}` brings it back.")
        else:
            session.desk.manager.remove(name, session.progress, force=force)
            session.progress.done(f"Removed machine {name}.")


def _goes_into_bin(session: Session, name: str, *, force: bool) -> bool:
    try:
        return session.desk.machine_bin.take(name, session.progress)
    except DeskError:
        if not force:
            raise
        return False  # what is damaged is deleted
