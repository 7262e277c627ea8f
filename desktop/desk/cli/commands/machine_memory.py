"""``desk machine stats``: what machines use of their memory, and what this computer pays for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from desk.cli import complete, options, render
from desk.cli.framework import DeskCommand
from desk.cli.render import Table
from desk.cli.session import Session, pass_session
from desk.errors import UsageError
from desk.sizes import binary_size

if TYPE_CHECKING:
    from desk.machine.memory import MemoryUsage, Sample

_HEADINGS = {
    "Name": "NAME",
    "Memory": "MEMORY",
    "Used": "USED",
    "Cache": "CACHE",
    "Free": "FREE",
    "Least": "LEAST",
    "HostMemory": "HOST PAYS",
    "HostProcess": "HOST PROCESS",
    "Pressure": "PRESSURE",
    "Holders": "HELD BY",
}
_DEFAULT = ("Name", "Memory", "Used", "Cache", "Free", "HostMemory", "HostProcess", "Holders")
_HISTORY_HEADINGS = {"Time": "TIME", "Memory": "MEMORY", "Used": "USED", "Cache": "CACHE"}
_MINUTE_S = 60
_NAMED_HOLDERS = 2
_LEAST_HOLDER_BYTES = 1 << 20


@click.command(cls=DeskCommand, example="desk machine stats\ndesk machine stats --history")
@click.option("--history", is_flag=True, help="Print the last hour, a line a minute.")
@options.table_format
@click.argument("names", metavar="[MACHINE]...", nargs=-1, shell_complete=complete.machines)
@pass_session
def stats(session: Session, names: tuple[str, ...], history: bool, form: str) -> None:
    """Print what machines use of their memory, and what this computer pays for it."""
    if history and len(names) > 1:
        raise UsageError("--history is of one machine", hint="Name one of them.")
    wanted = names or (session.machine,)
    for name in wanted:
        session.desk.require_machine(name)
    found = [session.desk.memory.usage(name) for name in wanted]
    if history:
        table = Table(_HISTORY_HEADINGS, default=tuple(_HISTORY_HEADINGS), quiet="Time")
        table.print(history_rows(found[0].history), form=form, quiet=False)
        return
    table = Table(_HEADINGS, default=_DEFAULT, quiet="Name")
    table.print([usage_row(usage) for usage in found], form=form, quiet=False)


def usage_row(usage: MemoryUsage) -> render.Row:
    """Return the columns of one machine."""
    held = [each for each in usage.holders if each.held_bytes >= _LEAST_HOLDER_BYTES]
    named = [f"{each.name} {binary_size(each.held_bytes)}" for each in held[:_NAMED_HOLDERS]]
    if held[_NAMED_HOLDERS:]:
        named.append(f"{len(held) - _NAMED_HOLDERS} more")
    return {
        "Cache": binary_size(usage.cache_bytes),
        "Free": binary_size(usage.free_bytes),
        "Holders": ", ".join(named),
        "HostMemory": _known(usage.host_ram_bytes),
        "HostProcess": _known(usage.host_process_bytes),
        "Least": binary_size(usage.least_mib << 20),
        "Memory": binary_size(usage.ceiling_mib << 20),
        "Name": usage.name,
        "Pressure": f"{usage.pressure_percent:.2f}%",
        "Used": binary_size(usage.used_bytes),
    }


def history_rows(samples: Sequence[Sample]) -> Iterable[render.Row]:
    """Return a line for each minute, with its largest use."""
    minutes: dict[int, Sample] = {}
    for sample in samples:
        known = minutes.setdefault(sample.time_s // _MINUTE_S, sample)
        if sample.used_bytes > known.used_bytes:
            minutes[sample.time_s // _MINUTE_S] = sample
    return [
        {
            "Cache": binary_size(sample.cache_bytes),
            "Memory": binary_size(sample.total_bytes),
            "Time": time.strftime("%H:%M", time.localtime(minute * _MINUTE_S)),
            "Used": binary_size(sample.used_bytes),
        }
        for minute, sample in sorted(minutes.items())
    ]


def _known(size_bytes: int | None) -> str:
    return "" if size_bytes is None else binary_size(size_bytes)
