"""``desk system check``: is everything that the engine keeps whole?"""

from __future__ import annotations

import click

from desk.cli import render
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.errors import DeskError, EngineError


class StoreDamaged(DeskError):
    """Something of the store is not as it should be."""


@click.command(cls=DeskCommand, example="desk system check --repair")
@click.option("--repair", is_flag=True, help="Mend what can be mended, and say what is lost.")
@click.option("--deep", is_flag=True, help="Read every file and compare it with its digest.")
@pass_session
def check(session: Session, repair: bool, deep: bool) -> None:
    """Check the engine's store of images, layers and containers.

    It may be used while containers run. The exit code is 1 if something is left wrong.
    """
    summary = None
    with session.client.system.check_store(repair=repair, deep=deep) as lines:
        for line in lines:
            if "Problem" in line:
                mark = "repaired" if line["Repaired"] else "wrong"
                outcome = f": {line['Outcome']}" if line["Outcome"] else ""
                render.out(f"{mark}: {line['Problem']}{outcome}.")
            elif "Left" in line:
                summary = line
    if summary is None:
        raise EngineError("The engine ended before the check was complete.", hint="Run it again.")
    if summary["Left"]:
        count = summary["Left"]
        things = "One thing is" if count == 1 else f"{count} things are"
        hint = "Do what is said above." if repair else "Add --repair to mend what can be mended."
        raise StoreDamaged(f"{things} wrong in the engine's store.", hint=hint)
    render.out("Everything is right." if not summary["Found"] else "Everything was repaired.")
