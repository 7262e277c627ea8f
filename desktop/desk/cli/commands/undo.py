"""``desk undo``: what was removed comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from desk.cli import options, render
from desk.cli.framework import DeskCommand
from desk.cli.host_disk import HostDisk
from desk.cli.render import Table
from desk.cli.session import Session, pass_session
from desk.cli.units import ago, human_size
from desk.errors import DeskError, NotFound, UsageError

if TYPE_CHECKING:
    from desk.machine.bin import BinnedMachine

_HEADINGS = {
    "Name": "NAME",
    "Kind": "KIND",
    "RemovedSince": "REMOVED",
    "Size": "SIZE",
    "ID": "ID",
}
_SHORT_ID = 12
_MACHINE, _BEFORE = "machine", "before"

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
    """Bring back what the last command removed, or what is named.

    A machine's settings before a change, its disk before a reset, and both before an upgrade come
    back, too.
    """
    if ((list_ or empty) and names) or (list_ and empty):
        raise UsageError("--list, --empty and names exclude each other", hint="Give one of them.")
    entries = _entries(session)
    if list_ or form:
        table = Table(_HEADINGS, default=tuple(_HEADINGS), quiet="ID")
        table.print([bin_row(entry) for entry in entries], form=form, quiet=False)
    elif empty:
        if force or render.confirm(f"Delete {len(entries)} removed things for good?"):
            _empty(session, entries)
    else:
        _bring_back(session, chosen(entries, names))


def _entries(session: Session) -> list[Entry]:
    """Return what the engine and this computer keep, the latest first. Where machines can come
    back, the engine of one that does not run may be silent."""
    machines = [] if session.engine_url else _machines(session)
    try:
        kept: list[Entry] = session.client.bin.contents()["Entries"]
    except DeskError:
        if not machines:
            raise
        return machines
    return sorted([*kept, *machines], key=lambda entry: -int(entry["RemovedNano"]))


def _machines(session: Session) -> list[Entry]:
    session.desk.machine_bin.enforce()
    return [
        {
            "Id": each.id,
            "Kind": f"{_BEFORE} {each.before}" if each.before else _MACHINE,
            "Name": each.name,
            "Group": each.id,
            "RemovedNano": each.removed_ns,
            "Size": each.size_bytes,
        }
        for each in session.desk.machine_bin.contents()
    ]


def _empty(session: Session, entries: Sequence[Entry]) -> None:
    machines = freed = 0
    host_disk = None
    if any(_is_of_machines(entry) for entry in entries):
        machines = session.desk.machine_bin.empty()
    if not all(_is_of_machines(entry) for entry in entries):
        host_disk = HostDisk(session)
        freed = session.client.bin.empty()
    render.out(f"Total reclaimed space: {human_size(machines + freed)}")
    if host_disk is not None:
        host_disk.tell(freed)


def _bring_back(session: Session, entries: Sequence[Entry]) -> None:
    wanted = {str(entry["Id"]) for entry in entries if _is_of_machines(entry)}
    for binned in session.desk.machine_bin.contents() if wanted else ():
        if binned.id in wanted:
            _bring_machine_back(session, binned)
    others = [str(entry["Id"]) for entry in entries if not _is_of_machines(entry)]
    if others:
        _tell(session.client.bin.restore(others))


def _is_of_machines(entry: Entry) -> bool:
    kind = str(entry["Kind"])
    return kind == _MACHINE or kind.startswith(f"{_BEFORE} ")


def _bring_machine_back(session: Session, binned: BinnedMachine) -> None:
    if not binned.before:
        session.desk.machine_bin.put_back(binned)
        render.out(f"{_MACHINE} {binned.name}")
        return
    desk = session.desk
    desk.checkpoints.bring_back(binned, desk.machine_settings, session.progress)
    session.progress.done(
        f"Machine {binned.name} is as it was before the {binned.before};"
        " `desk undo` once more undoes that."
    )


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
