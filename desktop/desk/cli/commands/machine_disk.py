"""``desk machine disk``: how large and how full data disks are, and what they cost here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from desk.cli import complete, options, render
from desk.cli.framework import DeskCommand
from desk.cli.machine_flags import disk_gib
from desk.cli.render import Table
from desk.cli.session import Session, pass_session
from desk.errors import UsageError
from desk.sizes import binary_size

if TYPE_CHECKING:
    from desk.machine.disks import DiskUsage

_HEADINGS = {
    "Name": "NAME",
    "Size": "SIZE",
    "Used": "USED",
    "Free": "FREE",
    "Reserve": "RESERVE",
    "HostDisk": "HOST PAYS",
    "Snapshots": "SNAPSHOTS",
}
_DEFAULT = ("Name", "Size", "Used", "Free", "HostDisk", "Snapshots")


@click.command(cls=DeskCommand, example="desk machine disk\ndesk machine disk --resize 100g big")
@click.option("--resize", metavar="SIZE", help="Make the disk this large, such as 100g; at once.")
@options.table_format
@click.argument("names", metavar="[MACHINE]...", nargs=-1, shell_complete=complete.machines)
@pass_session
def disk(session: Session, names: tuple[str, ...], resize: str | None, form: str) -> None:
    """Show and enlarge the data disks of machines."""
    if resize is not None and len(names) > 1:
        raise UsageError("--resize is of one machine", hint="Name one of them.")
    wanted = names or (session.machine,)
    for name in wanted:
        session.desk.require_machine(name)
    if resize is not None:
        size_gib = disk_gib(resize, flag="--resize")
        grown = session.desk.disks.grow(wanted[0], size_gib, session.progress)
        has = "has a disk of" if grown else "has a disk of that size already:"
        session.progress.done(f"Machine {wanted[0]} {has} {size_gib} GiB.")
        return
    table = Table(_HEADINGS, default=_DEFAULT, quiet="Name")
    rows = [usage_row(session.desk.disks.usage(name)) for name in wanted]
    table.print(rows, form=form, quiet=False)


def usage_row(usage: DiskUsage) -> render.Row:
    """Return the columns of one machine."""
    return {
        "Free": _known(usage.free_bytes),
        "HostDisk": _known(usage.host_bytes),
        "Name": usage.name,
        "Reserve": _known(usage.reserve_bytes),
        "Size": _known(usage.size_bytes),
        "Snapshots": _known(usage.snapshots_bytes or None),
        "Used": _known(usage.used_bytes),
    }


def _known(size_bytes: int | None) -> str:
    return "" if size_bytes is None else binary_size(size_bytes)
