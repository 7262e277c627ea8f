"""The ``prune`` commands: remove what is not in use."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import click

from desk.cli import render
from desk.cli.filters import parse_filters
from desk.cli.framework import DeskCommand
from desk.cli.host_disk import HostDisk
from desk.cli.session import Session, pass_session
from desk.cli.units import human_size
from desk.errors import InvalidRequest

_force = click.option("-f", "--force", is_flag=True, help="Do not ask.")
_filter = click.option(
    "--filter",
    "filters",
    metavar="NAME=VALUE",
    multiple=True,
    help="Only those that match, such as until=24h or label=x.",
)


def agreed(question: str, *, force: bool) -> bool:
    """Ask unless forced; a no ends the command without an error. As Docker does, the question
    goes to standard output and whatever standard input is answers it."""
    if force:
        return True
    render.write(f"WARNING! {question}\nAre you sure you want to continue? [y/N] ")
    answer = sys.stdin.readline() if sys.stdin is not None else ""
    agreed = answer.strip().lower() in ("y", "yes")
    if not answer:
        render.out("")
        render.note("Nothing was removed. Add --force to go on without the question.")
    return agreed


def report(title: str, items: Iterable[str]) -> None:
    lines = list(items)
    if lines:
        render.out(f"{title}:")
        for line in lines:
            render.out(line)
        render.out("")


def reclaimed(session: Session, host_disk: HostDisk, size_bytes: int) -> None:
    """Tell what the machine's disk got back, what it will get when the bin is emptied, and what
    this computer got back."""
    render.out(f"Total reclaimed space: {human_size(size_bytes)}")
    group = session.client.connection.bin_group
    entries = session.client.bin.contents()["Entries"]
    kept = sum(entry["Size"] for entry in entries if entry["Group"] == group)
    if kept:
        render.note(
            f"{human_size(kept)} more when the bin is emptied; `desk undo` brings it back,"
            " `desk undo --empty` frees it now."
        )
    host_disk.tell(size_bytes)


def deleted_images(answer: Mapping[str, Any]) -> list[str]:
    return [
        f"{action.lower()}: {item[action]}"
        for item in answer.get("ImagesDeleted") or ()
        for action in ("Untagged", "Deleted")
        if item.get(action)
    ]


@click.command("prune", cls=DeskCommand, example="desk container prune -f")
@_force
@_filter
@pass_session
def containers(session: Session, force: bool, filters: tuple[str, ...]) -> None:
    """Remove all stopped containers."""
    if agreed("This will remove all stopped containers.", force=force):
        host_disk = HostDisk(session)
        answer = session.removing_client.containers.prune(filters=parse_filters(filters))
        report("Deleted Containers", answer.get("ContainersDeleted") or ())
        reclaimed(session, host_disk, answer.get("SpaceReclaimed") or 0)


@click.command("prune", cls=DeskCommand, example="desk image prune -a")
@click.option("-a", "--all", "all_", is_flag=True, help="All unused ones, not only unnamed.")
@_force
@_filter
@pass_session
def images(session: Session, all_: bool, force: bool, filters: tuple[str, ...]) -> None:
    """Remove unused images."""
    kind = "images without at least one container" if all_ else "images without a name"
    if agreed(f"This will remove all {kind}.", force=force):
        wanted = {**parse_filters(filters), "dangling": ["false" if all_ else "true"]}
        host_disk = HostDisk(session)
        answer = session.removing_client.images.prune(filters=wanted)
        report("Deleted Images", deleted_images(answer))
        reclaimed(session, host_disk, answer.get("SpaceReclaimed") or 0)


@click.command("prune", cls=DeskCommand, example="desk network prune")
@_force
@_filter
@pass_session
def networks(session: Session, force: bool, filters: tuple[str, ...]) -> None:
    """Remove unused networks."""
    if agreed("This will remove all networks that no container uses.", force=force):
        answer = session.client.networks.prune(filters=parse_filters(filters))
        report("Deleted Networks", answer.get("NetworksDeleted") or ())


@click.command("prune", cls=DeskCommand, example="desk volume prune")
@click.option("-a", "--all", "all_", is_flag=True, help="Named volumes too.")
@_force
@_filter
@pass_session
def volumes(session: Session, all_: bool, force: bool, filters: tuple[str, ...]) -> None:
    """Remove unused volumes."""
    kind = "volumes" if all_ else "anonymous volumes"
    if agreed(f"This will remove all {kind} that no container uses.", force=force):
        wanted = parse_filters(filters)
        if all_:
            wanted["all"] = ["true"]
        host_disk = HostDisk(session)
        answer = session.removing_client.volumes.prune(filters=wanted)
        report("Deleted Volumes", answer.get("VolumesDeleted") or ())
        reclaimed(session, host_disk, answer.get("SpaceReclaimed") or 0)


@click.command("prune", cls=DeskCommand, example="desk system prune --volumes")
@click.option("-a", "--all", "all_", is_flag=True, help="All unused images, not only unnamed.")
@_force
@_filter
@click.option("--volumes", "volumes_", is_flag=True, help="Anonymous volumes too.")
@pass_session
def system(
    session: Session, all_: bool, force: bool, filters: tuple[str, ...], volumes_: bool
) -> None:
    """Remove everything that is not in use."""
    if volumes_ and any(text.partition("=")[0].strip() == "until" for text in filters):
        raise InvalidRequest(
            "volumes have no age: the filter until and --volumes exclude each other",
            hint="Prune in two steps: with the filter, then `desk volume prune`.",
        )
    what = [
        "all stopped containers",
        "all networks that no container uses",
        *(["all anonymous volumes that no container uses"] if volumes_ else []),
        "all images without a container" if all_ else "all images without a name",
    ]
    question = "This will remove:\n" + "\n".join(f"  - {item}" for item in what)
    if not agreed(question, force=force):
        return
    client, wanted = session.removing_client, parse_filters(filters)
    host_disk = HostDisk(session)
    answer = client.containers.prune(filters=wanted)
    report("Deleted Containers", answer.get("ContainersDeleted") or ())
    total = answer.get("SpaceReclaimed") or 0
    answer = client.networks.prune(filters=wanted)
    report("Deleted Networks", answer.get("NetworksDeleted") or ())
    if volumes_:
        answer = client.volumes.prune(filters=wanted)
        report("Deleted Volumes", answer.get("VolumesDeleted") or ())
        total += answer.get("SpaceReclaimed") or 0
    answer = client.images.prune(filters={**wanted, "dangling": ["false" if all_ else "true"]})
    report("Deleted Images", deleted_images(answer))
    total += answer.get("SpaceReclaimed") or 0
    reclaimed(session, host_disk, total)
