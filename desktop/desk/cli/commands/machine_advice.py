"""``desk machine advise``: the memory that a machine should have, by its containers' peaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from desk.cli import complete, options, render
from desk.cli.framework import DeskCommand
from desk.cli.render import Table
from desk.cli.session import Session, pass_session
from desk.cli.units import human_duration
from desk.sizes import binary_size

if TYPE_CHECKING:
    from desk.machine.memory_advice import Advice, Observed

_HEADINGS = {
    "Container": "CONTAINER",
    "Now": "NOW",
    "Peak": "PEAK",
    "PeakUsage": "PEAK WITH CACHE",
    "Limit": "LIMIT",
    "Observed": "OBSERVED",
    "Runs": "RUNS",
    "Image": "IMAGE",
    "Counts": "COUNTS",
    "Machine": "MACHINE",
    "MachineMemory": "MACHINE MEMORY",
    "AdvisedMemory": "ADVISED MEMORY",
}
_DEFAULT = ("Container", "Now", "Peak", "Limit", "Observed")
_MOST_NAME = 26  # so that a line of the table has its place in 80 columns
_MOST_NAMED = 2


@click.command(cls=DeskCommand, example="desk machine advise\ndesk machine advise --format json")
@options.table_format
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@pass_session
def advise(session: Session, name: str | None, form: str) -> None:
    """Print which memory a machine should have, by what its containers held at most.

    PEAK is without page cache. Counted are the containers whose peaks make the largest sum of those
    that ran at one time in the last week.
    """
    machine = name or session.machine
    session.desk.require_machine(machine)
    advice = session.desk.memory.advice(machine)
    table = Table(_HEADINGS, default=_DEFAULT, quiet="Container")
    table.print(advice_rows(machine, advice, cut=not form), form=form, quiet=False)
    # A format is for programs, which the sentence would disturb.
    by_itself = not name and not session.names_machine
    (render.note if form else render.out)(sentence(machine, advice, by_itself=by_itself))


def advice_rows(machine: str, advice: Advice, *, cut: bool) -> list[render.Row]:
    """Return a line for each container that runs or that the advice stands on, the largest first;
    ``cut`` shortens long names."""
    shown = [each for each in advice.observed if each.running or each in advice.together]
    shown.sort(key=lambda each: (-each.needed_bytes, each.name))
    return [
        {
            "AdvisedMemory": advice.advised_mib << 20,
            "Container": _name(each, cut=cut),
            "Counts": each in advice.together,
            "Image": each.image,
            "Limit": binary_size(each.limit_bytes) if each.limit_bytes else "",
            "Machine": machine,
            "MachineMemory": advice.ceiling_mib << 20,
            "Now": binary_size(each.held_bytes) if each.running else "",
            "Observed": human_duration(each.observed_s),
            "Peak": binary_size(each.peak_bytes),
            "PeakUsage": binary_size(each.peak_usage_bytes),
            "Runs": each.runs,
        }
        for each in shown
    ]


def sentence(machine: str, advice: Advice, *, by_itself: bool) -> str:
    """Return the recommendation; ``by_itself``: its command need not name the machine."""
    from desk.machine.memory_advice import Verdict

    if advice.verdict is Verdict.UNKNOWN:
        return (
            f"No container of machine {machine} was observed in the last week: run what you work"
            " with, and ask again."
        )
    count = len(advice.together)
    text = (
        f"What ran at one time ({count} container{'' if count == 1 else 's'}) needs up to"
        f" {_mib(advice.needed_mib)} with kernel and engine; machine {machine} has"
        f" {_mib(advice.ceiling_mib)}"
    )
    command = f"desk machine set --memory {advice.size}" + ("" if by_itself else f" {machine}")
    if advice.verdict is Verdict.RIGHT:
        text += ", which is right."
    elif not advice.sized:
        text += f", and {_mib(advice.advised_mib)} would do, but Desk does not set it."
    elif advice.verdict is Verdict.RAISE:
        text += f": `{command}` gives it room."
    else:
        text += f": `{command}` would do."
    return text + _reservation(advice)


def _reservation(advice: Advice) -> str:
    """Say what the advice stands on: how long it was observed, and of what too little."""
    seldom = advice.seldom_seen
    if not seldom:
        return f" Observed for {_span(advice.observed_s)}."
    names = [_name(each, cut=True) for each in seldom[:_MOST_NAMED]]
    if seldom[_MOST_NAMED:]:
        names.append(f"{len(seldom) - _MOST_NAMED} more")
    least_s = min(each.observed_s for each in seldom)
    return (
        f" This is weak advice: {', '.join(names)} {'was' if len(seldom) == 1 else 'were'} observed"
        f" for {_span(least_s)} only."
    )


def _span(seconds: float) -> str:
    text = human_duration(seconds)
    return text[0].lower() + text[1:]


def _name(container: Observed, *, cut: bool) -> str:
    name = container.name or f"({container.image})"
    return f"{name[: _MOST_NAME - 1]}…" if cut and len(name) > _MOST_NAME else name


def _mib(mib: int) -> str:
    return binary_size(mib << 20)
