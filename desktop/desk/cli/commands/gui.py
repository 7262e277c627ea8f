"""``desk gui``: the desktop app."""

from __future__ import annotations

from importlib.util import find_spec

import click

from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.errors import PreconditionFailed


@click.command(cls=DeskCommand, example="desk gui")
@pass_session
def gui(session: Session) -> None:
    """Open the desktop app."""
    if find_spec("PySide6") is None:
        raise PreconditionFailed(
            "the desktop app needs PySide6, which is not installed",
            hint="Install it with `pip install 'desk-toolkit[gui]'`.",
        )
    from desk.gui.app import main

    code = main([], machine=session.machine)
    if code:
        raise click.exceptions.Exit(code)
