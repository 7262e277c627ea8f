"""``desk machine image …``: the guest images that machines boot."""

from __future__ import annotations

import click

from desk.cli import options, render
from desk.cli.catalog import Entry
from desk.cli.framework import DeskCommand, LazyGroup
from desk.cli.session import Session, for_each, pass_session
from desk.cli.units import human_size

_GROUP = {
    "install": Entry("guest_image:install", "Install a guest image."),
    "ls": Entry("guest_image:ls", "List installed guest images."),
    "rm": Entry("guest_image:rm", "Remove guest images."),
    "verify": Entry("guest_image:verify", "Read every byte of the guest images."),
}


@click.group(cls=LazyGroup, sections={"Commands": _GROUP})
def image() -> None:
    """Manage the guest images that machines boot."""


def _show(session: Session, sentence: str, done: int, total: int) -> None:
    """Tell how far a copy is; figures only where they overwrite each other."""
    if session.progress.live:
        share = f" {100 * done // total} %" if total else f" {human_size(done)}"
        session.progress(sentence + share)


@click.command(cls=DeskCommand, example="desk machine image install build/guest")
@click.argument("source", metavar="PATH|URL#sha256=HEX")
@pass_session
def install(session: Session, source: str) -> None:
    """Install a guest image."""
    from desk.machine.images import ImageStore
    from desk.machine.store import MachineStore

    MachineStore(session.desk.home).make_home()  # private from its first file on
    installed = ImageStore(session.desk.home).install(
        source, lambda sentence, done, total: _show(session, sentence, done, total)
    )
    session.progress.done(f"Installed guest image {installed.manifest.identity}.")


@click.command(cls=DeskCommand, example="desk machine image ls")
@options.quiet_names
@pass_session
def ls(session: Session, quiet: bool) -> None:
    """List installed guest images."""
    from desk.machine.images import ImageStore

    found = ImageStore(session.desk.home).installed()
    if quiet:
        render.write("".join(f"{item.manifest.identity}\n" for item in found))
        return
    rows = [
        (
            item.manifest.identity,
            item.manifest.arch,
            human_size(sum((item.directory / f.file).stat().st_size for f in item.manifest.files)),
        )
        for item in found
    ]
    render.print_columns([("NAME", "ARCHITECTURE", "SIZE"), *rows])


@click.command(cls=DeskCommand, example="desk machine image rm 0.1.0-amd64")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_session
def rm(session: Session, names: tuple[str, ...]) -> None:
    """Remove guest images."""
    from desk.machine.images import ImageStore

    for_each(names, ImageStore(session.desk.home).remove)


@click.command(cls=DeskCommand, example="desk machine image verify")
@pass_session
def verify(session: Session) -> None:
    """Read every byte of the guest images."""
    from desk.machine.images import ImageStore

    store = ImageStore(session.desk.home)
    for item in store.installed():
        store.verify(item, lambda sentence, done, total: _show(session, sentence, done, total))
        session.progress.done()
        render.out(f"{item.manifest.identity}: whole")
