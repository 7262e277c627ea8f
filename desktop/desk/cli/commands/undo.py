"""``desk undo``: what was removed comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from desk.cli import options, render
from desk.cli.framework import DeskCommand
from desk.cli.render import Table
from desk.cli.session import Session, pass_session
from desk.cli.units import ago, human_size
from desk.errors import NotFound, UsageError

_HEADINGS = {
    "Name": "NAME",
    "Kind": "KIND",
    "RemovedSince": "REMOVED",
    "Size": "SIZE",
    "ID": "ID",
}
_SHORT_ID = 12

Entry = Mapping[str, Any]


@click.command(cls=DeskCommand, example="desk undo\ndesk undo --list\ndesk undo web")
@click.option("-l", "--list", "list_", is_flag=True, help="List what can be brought back.")
@click.option("--empty", is_flag=True, help="Delete for good what was removed.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@options.table_format
@click.argument("names", metavar="[NAME|ID]...", nargs=-1)
@pass_session
def undo(
    session: Session, names: tuple[str, ...], list_: bool, empty: bool, force: bool, form: str
) -> None:
    """Bring back what the last command removed, or what is named."""
    if ((list_ or empty) and names) or (list_ and empty):
        raise UsageError("--list, --empty and names exclude each other", hint="Give one of them.")
    bin_ = session.client.bin
    entries: Sequence[Entry] = bin_.contents()["Entries"]
    if list_ or form:
        table = Table(_HEADINGS, default=tuple(_HEADINGS), quiet="ID")
        table.print([bin_row(entry) for entry in entries], form=form, quiet=False)
    elif empty:
        if force or render.confirm(f"Delete {len(entries)} removed things for good?"):
            render.out(f"Total reclaimed space: {human_size(bin_.empty())}")
    else:
        _tell(bin_.restore([str(entry["Id"]) for entry in chosen(entries, names)]))


def chosen(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """Return the entries that are meant: of each name the latest, without names those of the last
    command. Raises ``NotFound``."""
    if not entries:
        raise NotFound("there is nothing to bring back", hint="What desk removes can be for a day.")
    if not names:
        last = entries[0]["Group"]
        return [entry for entry in entries if entry["Group"] == last]
    found = []
    for name in names:
        meant = [entry for entry in entries if _is_meant(entry, name)]
        if not meant:
            raise NotFound(
                f"nothing removed is called {name}", hint="`desk undo --list` shows what there is."
            )
        found.append(meant[0])
    return found


def _is_meant(entry: Entry, name: str) -> bool:
    return name in (entry["Name"], f"{entry['Kind']} {entry['Name']}") or (
        len(name) >= _SHORT_ID // 2 and str(entry["Id"]).startswith(name)
    )


def _tell(answer: Mapping[str, Any]) -> None:
    for entry in answer["Restored"]:
        render.out(f"{entry['Kind']} {entry['Name']}")
        if entry["Warning"]:
            render.note(f"{entry['Kind']} {entry['Name']}: {entry['Warning']}")
    for entry in answer["Failed"]:
        render.note(f"desk: {entry['Kind']} {entry['Name']}: {entry['Reason']}")
    if answer["Failed"]:
        raise click.exceptions.Exit(1)


def bin_row(entry: Entry) -> render.Row:
    """Return the columns of one entry."""
    return {
        "ID": str(entry["Id"])[:_SHORT_ID],
        "Kind": str(entry["Kind"]),
        "Name": str(entry["Name"]),
        "RemovedSince": ago(entry["RemovedNano"] / 1e9),
        "Size": human_size(entry["Size"]),
    }
