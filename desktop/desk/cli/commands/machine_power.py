"""``desk machine power``: what machines do while this computer is on its battery."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from desk.cli import complete, options, render
from desk.cli.framework import DeskCommand
from desk.cli.render import Table
from desk.cli.session import Session, pass_session

if TYPE_CHECKING:
    from desk.machine.power import MachinePower

_HEADINGS = {
    "Name": "NAME",
    "Source": "SOURCE",
    "SourceSetting": "SOURCE SETTING",
    "Charge": "CHARGE",
    "BatteryCPUs": "CPUS ON BATTERY",
    "CPUs": "LIMIT NOW",
    "Frozen": "FROZEN",
    "Spared": "RUNNING ON BATTERY",
    "Label": "LABEL",
}
_DEFAULT = ("Name", "Source", "Charge", "BatteryCPUs", "CPUs", "Frozen")
_OFF = "off"
_EXAMPLE = """desk machine power --battery-cpus 1
desk run -d --label desk.power=pause-on-battery worker
desk machine power"""


@click.command(cls=DeskCommand, example=_EXAMPLE)
@click.option(
    "--battery-cpus",
    metavar="COUNT|off",
    help="CPUs that containers may use together on battery, such as 1.5; off for all.",
)
@click.option(
    "--source",
    metavar="auto|mains|battery",
    help="What this computer runs on, where it does not tell (a UPS) or is not to count.",
)
@options.table_format
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@pass_session
def power(
    session: Session, name: str | None, battery_cpus: str | None, source: str | None, form: str
) -> None:
    """Show and set what a machine does while this computer is on its battery.

    Without a setting nothing changes on battery but for containers with the label
    desk.power=pause-on-battery: they are paused, and go on with mains. One that somebody starts or
    unpauses on battery runs on until the next change.
    """
    machine = name or session.machine
    session.desk.require_machine(machine)
    control = session.desk.power
    if battery_cpus is None and source is None:
        found = control.look(machine)
    else:
        found = control.set(
            machine,
            session.progress,
            battery_cpus="" if battery_cpus == _OFF else battery_cpus,
            source=source,
        )
        session.progress.done()
    Table(_HEADINGS, default=_DEFAULT, quiet="Name").print(
        [power_row(found)], form=form, quiet=False
    )
    if found.now is not None and found.now.problem:
        render.note(f"Machine {machine}: {found.now.problem}.")


def power_row(found: MachinePower) -> render.Row:
    """Return the columns of one machine; what is in force is empty where it does not run."""
    from desk.agent.spec import AUTO
    from desk.machine.power import LABEL

    now, charge = found.now, found.host.charge_percent
    return {
        "BatteryCPUs": _cpus(found.battery_cpus),
        "CPUs": "" if now is None else _cpus(now.cpus),
        "Charge": "" if charge is None else f"{charge:g}%",
        "Frozen": "" if now is None else ", ".join(now.frozen),
        "Label": LABEL,
        "Name": found.name,
        "Source": f"{found.source}{'' if found.chosen == AUTO else ' (set)'}",
        "SourceSetting": found.chosen,
        "Spared": "" if now is None else ", ".join(now.spared),
    }


def _cpus(count: float | None) -> str:
    return "all" if count is None else f"{count:g}"
