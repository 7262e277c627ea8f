"""``desk doctor``: what is wrong, and what to do about it."""

from __future__ import annotations

import click

from desk.cli import complete, render
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session


@click.command(cls=DeskCommand, example="desk doctor")
@click.argument("machine", required=False, shell_complete=complete.machines)
@pass_session
def doctor(session: Session, machine: str | None) -> None:
    """Check this computer and the machine, and name remedies."""
    raise NotImplementedError
