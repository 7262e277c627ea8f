"""``desk machine rename``, ``clone``, ``snapshot``, ``restore``, ``export``, ``import``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from desk.cli import complete, options, render
from desk.cli.framework import DeskCommand
from desk.cli.render import Table
from desk.cli.session import Session, pass_session
from desk.cli.units import ago, human_size, parse_timestamp
from desk.errors import UsageError

_machine = click.argument("name", metavar="MACHINE", shell_complete=complete.machines)
_new = click.argument("new", metavar="NAME")
_SNAPSHOT_HEADINGS = {"Name": "SNAPSHOT", "CreatedSince": "CREATED", "Size": "SIZE AT MOST"}


@click.command(cls=DeskCommand, example="desk machine rename default work")
@_machine
@_new
@pass_session
def rename(session: Session, name: str, new: str) -> None:
    """Give a stopped machine another name."""
    session.desk.require_machine(name)
    session.desk.copies.rename(name, new)
    settings = session.desk.settings
    if settings.active_machine == name:
        session.desk.save_settings(settings.with_active_machine(new))
    session.progress.done(f"Machine {name} is called {new} now.")


@click.command(cls=DeskCommand, example="desk machine clone default trial")
@_machine
@_new
@pass_session
def clone(session: Session, name: str, new: str) -> None:
    """Make a machine with the same images, containers, volumes and settings."""
    session.desk.require_machine(name)
    session.desk.copies.clone(name, new, session.progress)
    session.progress.done(f"Created machine {new}. `desk machine start {new}` starts it.")


@click.command(cls=DeskCommand, example="desk machine snapshot default before-upgrade")
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@click.argument("snapshot_name", metavar="[SNAPSHOT]", default="")
@pass_session
def snapshot(session: Session, name: str | None, snapshot_name: str) -> None:
    """Keep a machine's disk as it is now."""
    machine = name or session.machine
    session.desk.require_machine(machine)
    made = session.desk.copies.snapshot(machine, snapshot_name, session.progress)
    session.progress.done(f"Kept the disk of machine {machine} as snapshot {made}.")
    render.out(made)


@click.command(cls=DeskCommand, example="desk machine snapshots\ndesk machine snapshots --rm old")
@click.option("--rm", "removed", metavar="SNAPSHOT", multiple=True, help="Remove a snapshot.")
@options.table_format
@options.quiet_names
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@pass_session
def snapshots(
    session: Session, name: str | None, removed: tuple[str, ...], form: str, quiet: bool
) -> None:
    """List or remove the snapshots of a machine."""
    machine = name or session.machine
    session.desk.require_machine(machine)
    for each in removed:
        session.desk.copies.remove_snapshot(machine, each)
        render.out(each)
    if removed:
        return
    rows = [
        {
            "CreatedSince": ago(parse_timestamp(found.created_at)),
            "Name": found.name,
            "Size": human_size(found.size_bytes),
        }
        for found in session.desk.copies.snapshots(machine)
    ]
    table = Table(_SNAPSHOT_HEADINGS, default=tuple(_SNAPSHOT_HEADINGS), quiet="Name")
    table.print(rows, form=form, quiet=quiet)


@click.command(cls=DeskCommand, example="desk machine restore default before-upgrade")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@_machine
@click.argument("snapshot_name", metavar="SNAPSHOT")
@pass_session
def restore(session: Session, name: str, snapshot_name: str, force: bool) -> None:
    """Put a stopped machine's disk back to a snapshot."""
    session.desk.require_machine(name)
    question = f"Put {name} back to {snapshot_name}? What was changed since then is lost."
    if not force and not render.confirm(question):
        raise click.exceptions.Exit(1)
    session.desk.copies.restore(name, snapshot_name, session.progress)
    session.progress.done(f"Machine {name} is what it was at snapshot {snapshot_name}.")


@click.command(cls=DeskCommand, example="desk machine export default -o default.tar.gz")
@click.option("-o", "--output", metavar="FILE", help="Write to this file; .gz and .xz compress it.")
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@pass_session
def export(session: Session, name: str | None, output: str | None) -> None:
    """Write a whole machine, without its keys, to one file."""
    machine = name or session.machine
    session.desk.require_machine(machine)
    file = Path(output or f"{machine}-{time.strftime('%Y%m%d')}.tar.gz")
    session.desk.archives.write(machine, file, session.progress)
    session.progress.done(f"Wrote machine {machine} to {file}.")


@click.command(
    name="import", cls=DeskCommand, example="desk machine import default.tar.gz restored"
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.argument("name", metavar="[NAME]", required=False)
@pass_session
def import_(session: Session, file: Path, name: str | None) -> None:
    """Make a machine of a file that `export` wrote."""
    if str(file) == "-":
        raise UsageError("a machine is read from a file", hint="Give the name of the file.")
    made = session.desk.archives.read(file, name or "", session.progress)
    session.progress.done(f"Created machine {made}. `desk machine start {made}` starts it.")
