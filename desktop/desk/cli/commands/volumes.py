"""``desk volume …``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from desk.cli import complete, options, render
from desk.cli.catalog import Entry
from desk.cli.filters import parse_filters
from desk.cli.framework import DeskCommand, LazyGroup
from desk.cli.render import Table
from desk.cli.session import Session, for_each, pass_session
from desk.cli.specs import parse_pairs
from desk.cli.units import human_size
from desk.errors import InvalidRequest

_GROUP = {
    "create": Entry("volumes:create", "Create a volume."),
    "inspect": Entry("details:inspect_volume", "Show everything about volumes."),
    "ls": Entry("volumes:ls", "List volumes."),
    "prune": Entry("prune:volumes", "Remove unused volumes."),
    "rm": Entry("volumes:rm", "Remove volumes."),
}

_HEADINGS = {
    "Availability": "AVAILABILITY",
    "Driver": "DRIVER",
    "Group": "GROUP",
    "Labels": "LABELS",
    "Links": "LINKS",
    "Mountpoint": "MOUNTPOINT",
    "Name": "VOLUME NAME",
    "Scope": "SCOPE",
    "Size": "SIZE",
    "Status": "STATUS",
}


@click.group(cls=LazyGroup, sections={"Commands": _GROUP})
def volume() -> None:
    """Manage volumes."""


def volume_row(item: Mapping[str, Any]) -> render.Row:
    """Return the columns of one volume."""
    labels = item.get("Labels") or {}
    usage = item.get("UsageData") or {}
    return {
        "Availability": "N/A",  # this column and two more tell of cluster volumes only
        "Driver": item["Driver"],
        "Group": "N/A",
        "Label": lambda name: labels.get(name, ""),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        "Links": str(usage["RefCount"]) if usage else "N/A",
        "Mountpoint": item.get("Mountpoint") or "",
        "Name": item["Name"],
        "Scope": item.get("Scope") or "local",
        "Size": human_size(usage["Size"]) if usage else "N/A",
        "Status": "N/A",
    }


@click.command(cls=DeskCommand, example="desk volume ls")
@options.filters("Show those that match, such as dangling=true.")
@options.table_format
@options.quiet_names
@pass_session
def ls(session: Session, filters: tuple[str, ...], form: str, quiet: bool) -> None:
    """List volumes."""
    found = sorted(
        session.client.volumes.list(filters=parse_filters(filters)), key=lambda v: v["Name"]
    )
    table = Table(_HEADINGS, default=("Driver", "Name"), quiet="Name")
    table.print((volume_row(item) for item in found), form=form, quiet=quiet)


@click.command(cls=DeskCommand, example="desk volume create data")
@click.option("-d", "--driver", metavar="DRIVER", default="local", help="Driver (local).")
@click.option("--label", metavar="KEY=VALUE", multiple=True, help="Set a label.")
@click.option("-o", "--opt", metavar="KEY=VALUE", multiple=True, help="Option of the driver.")
@click.option("--name", "old_name", metavar="NAME", hidden=True)
@click.argument("name", required=False)
@pass_session
def create(
    session: Session,
    name: str | None,
    old_name: str | None,
    driver: str,
    label: tuple[str, ...],
    opt: tuple[str, ...],
) -> None:
    """Create a volume."""
    if name and old_name:
        raise InvalidRequest("the volume's name is given twice", hint="Leave --name out.")
    body = {
        "Name": name or old_name or "",
        "Driver": driver,
        "DriverOpts": parse_pairs(opt, flag="--opt"),
        "Labels": parse_pairs(label, flag="--label"),
    }
    render.out(session.starting_client.volumes.create(body)["Name"])


@click.command(cls=DeskCommand, example="desk volume rm data")
@click.option("-f", "--force", is_flag=True, help="No error where there is none.")
@click.argument(
    "names", metavar="VOLUME...", nargs=-1, required=True, shell_complete=complete.volumes
)
@pass_session
def rm(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Remove volumes."""
    for_each(names, lambda name: session.removing_client.volumes.remove(name, force=force))
