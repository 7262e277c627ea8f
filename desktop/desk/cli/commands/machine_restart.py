"""``desk machine restart``: what ran before runs afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from desk.cli import complete, options, render
from desk.cli.framework import DeskCommand
from desk.cli.render import Table
from desk.cli.session import Session, pass_session

if TYPE_CHECKING:
    from desk.machine.coming_up import Report, Returned

_HEADINGS = {"Name": "CONTAINER", "Before": "BEFORE", "After": "AFTER"}


@click.command(
    cls=DeskCommand, example="desk machine restart\ndesk machine restart --policy-only default"
)
@options.grace_period
@click.option(
    "--policy-only", is_flag=True, help="Start only what restart policies say, as Docker does."
)
@click.argument("names", metavar="[MACHINE]...", nargs=-1, shell_complete=complete.machines)
@pass_session
def restart(session: Session, names: tuple[str, ...], grace_s: float, policy_only: bool) -> None:
    """Restart machines and give back exactly what ran in them."""
    missing = False
    for name in names or (session.machine,):
        session.desk.require_machine(name)
        report = session.desk.manager.restart(
            name, session.progress, grace_s=grace_s, policy_only=policy_only
        )
        session.progress.done(f"Machine {name} is running again ({figures(report)}).")
        missing = tell(report.containers) or missing
    if missing:
        raise click.exceptions.Exit(1)


def figures(report: Report) -> str:
    """Return how long the restart took, with the stages that are worth a word."""
    told = [f"{name} {seconds:.1f}" for name, seconds in report.stages if seconds >= 0.05]
    total = f"{report.total_s:.1f} s"
    return f"{total}: {', '.join(told)}" if told else total


def tell(containers: tuple[Returned, ...]) -> bool:
    """Print the containers before and after; return whether one could not come back."""
    if containers:
        rows: list[render.Row] = [
            {"Name": each.name, "Before": each.before, "After": each.after} for each in containers
        ]
        table = Table(_HEADINGS, default=tuple(_HEADINGS), quiet="Name")
        table.print(rows, form="", quiet=False)
    for each in containers:
        if each.error:
            render.note(f"Container {each.name} did not come back: {each.error}.")
        elif not each.is_back:
            render.note(f"Container {each.name} was {each.before} and is {each.after} now.")
    return any(each.error for each in containers)
