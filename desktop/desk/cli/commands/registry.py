"""``desk registry …``: a private registry on the machine."""

from __future__ import annotations

import click

from desk.cli import render
from desk.cli.catalog import Entry
from desk.cli.commands.prune import agreed
from desk.cli.framework import DeskCommand, LazyGroup
from desk.cli.session import Session, pass_session
from desk.errors import MachineError, NotFound
from desk.machine.private_registry import PrivateRegistry

_GROUP = {
    "prune": Entry("registry:prune", "Delete what no tag in the registry needs any more."),
    "rm": Entry("registry:rm", "Remove the registry with the images in it."),
    "start": Entry("registry:start", "Start the registry; make it where there is none."),
    "status": Entry("registry:status", "Print the state and the address of the registry."),
    "stop": Entry("registry:stop", "Stop the registry; its images stay."),
}


@click.group(cls=LazyGroup, sections={"Commands": _GROUP})
def registry() -> None:
    """Manage the machine's own registry, for private images."""


@click.command(cls=DeskCommand, example="desk registry start\ndesk registry start --port 5001")
@click.option(
    "--port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    help="Port of localhost, here and on the machine (5000).",
)
@pass_session
def start(session: Session, port: int | None) -> None:
    """Start the registry; make it where there is none."""
    found = PrivateRegistry(session.starting_client, session.desk.home).start(
        port, session.progress
    )
    session.progress.done()
    render.out(
        f"The registry is at {found.address}.\n"
        f"Try:  desk tag busybox {found.address}/busybox && desk push {found.address}/busybox"
    )


@click.command(cls=DeskCommand, example="desk registry stop")
@pass_session
def stop(session: Session) -> None:
    """Stop the registry; its images stay."""
    changed = PrivateRegistry(session.client, session.desk.home).stop()
    render.note(f"The registry is stopped{'' if changed else ' already'}.")


@click.command(cls=DeskCommand, example="desk registry status")
@pass_session
def status(session: Session) -> None:
    """Print the state and the address of the registry."""
    found = PrivateRegistry(session.client, session.desk.home).status()
    if found is None:
        raise NotFound("there is no registry", hint="`desk registry start` makes and starts one.")
    render.out(f"Running  {found.address}" if found.running else "Stopped")
    if found.error:
        raise MachineError(
            f"the registry: {found.error}",
            hint="`desk logs desk-registry` shows more; `desk registry start` tries again.",
        )


@click.command(cls=DeskCommand, example="desk registry prune")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_session
def prune(session: Session, force: bool) -> None:
    """Delete what no tag in the registry needs any more."""
    own = PrivateRegistry(session.client, session.desk.home)
    question = "This will delete images without a tag from the registry, which stops meanwhile."
    if not agreed(question, force=force):
        return
    said = own.prune(session.progress)
    session.progress.done()
    deleted = sum(": deleting" in line or "eligible for deletion" in line
                  for line in said.splitlines())  # fmt: skip
    render.out(f"Deleted blobs and manifests: {deleted}")


@click.command(cls=DeskCommand, example="desk registry rm")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_session
def rm(session: Session, force: bool) -> None:
    """Remove the registry with the images in it."""
    own = PrivateRegistry(session.client, session.desk.home)
    if not agreed("This will remove the registry with all images in it.", force=force):
        return
    own.remove()
    render.note("The registry is removed.")
