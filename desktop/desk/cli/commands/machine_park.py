"""``desk machine park``: no memory is used, and a start goes on where the machine was."""

from __future__ import annotations

import click

from desk.cli import complete
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session


@click.command(cls=DeskCommand, example="desk machine park\ndesk machine start")
@click.argument("names", metavar="[MACHINE]...", nargs=-1, shell_complete=complete.machines)
@pass_session
def park(session: Session, names: tuple[str, ...]) -> None:
    """Write running machines to disk, to go on later where they were."""
    for name in names or (session.machine,):
        session.desk.require_machine(name)
        report = session.desk.manager.park(name, session.progress)
        session.progress.done(
            f"Machine {name} is parked ({report.total_s:.1f} s);"
            f" `desk machine start {name}` lets it go on."
        )
