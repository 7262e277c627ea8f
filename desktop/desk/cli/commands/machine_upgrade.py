"""``desk machine upgrade``: another guest image under the same data disk."""

from __future__ import annotations

import click

from desk.cli import complete
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.errors import UsageError


@click.command(cls=DeskCommand, example="desk machine upgrade\ndesk machine upgrade --back")
@click.option(
    "--image",
    metavar="PATH|URL",
    default="",
    help="Install this guest image and use it: a path, or a URL followed by #sha256=…",
)
@click.option("--back", is_flag=True, help="Use the image again that was there before.")
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@pass_session
def upgrade(session: Session, name: str | None, image: str, back: bool) -> None:
    """Give a machine a newer guest image; its data stays."""
    if image and back:
        raise UsageError("--image and --back exclude each other", hint="Give one of them.")
    machine = name or session.machine
    session.desk.require_machine(machine)
    upgrades = session.desk.upgrades
    if back:
        done = upgrades.back(machine, session.progress)
    else:
        done = upgrades.upgrade(machine, image, session.progress)
    if done.before == done.after:
        session.progress.done(f"Machine {machine} has the guest image {done.after} already.")
    elif done.restarted:
        session.progress.done(f"Machine {machine} runs with the guest image {done.after}.")
    else:
        session.progress.done(
            f"Machine {machine} has the guest image {done.after} from its next start on;"
            f" `desk machine upgrade --back {machine}` undoes it."
        )
