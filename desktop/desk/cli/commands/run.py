"""``desk run`` and ``desk create``."""

from __future__ import annotations

from typing import Any

import click

from desk.cli import complete, interactive, render
from desk.cli.framework import DeskCommand
from desk.cli.run_flags import container_flags
from desk.cli.session import Session, pass_session
from desk.cli.starting import (
    Attachment,
    StartFailed,
    check_streams,
    create_container,
    leave,
    run_attached,
    start,
)
from desk.cli.terminal import check_input


def arguments(function: Any) -> Any:
    """Declare ``IMAGE [COMMAND] [ARG...]``."""
    function = click.argument(
        "command", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND] [ARG]..."
    )(function)
    return click.argument("image", shell_complete=complete.images)(function)


@click.command(
    cls=DeskCommand,
    interspersed=False,
    example="desk run -it --rm busybox sh\ndesk run -d --name web -p 8080:80 nginx",
)
@click.option("-d", "--detach", is_flag=True, help="Run in the background and print the ID.")
@click.option(
    "--detach-keys", metavar="KEYS", help="Keys that detach this terminal (ctrl-p,ctrl-q)."
)
@click.option(
    "--sig-proxy/--no-sig-proxy",
    default=True,
    help="Pass signals on to the process (on; --sig-proxy=false turns it off).",
)
@container_flags
@arguments
@pass_session
def run(
    session: Session,
    image: str,
    command: tuple[str, ...],
    detach: bool,
    detach_keys: str | None,
    sig_proxy: bool,
    **flags: Any,
) -> None:
    """Create a container from an image and run it."""
    check_streams(detach=detach, attach=flags["attach"])
    attach = {name.lower() for name in flags["attach"]}
    attachment = Attachment(
        stdin=not detach and ("stdin" in attach or (flags["interactive"] and not attach)),
        stdout=not detach and ("stdout" in attach or not attach),
        stderr=not detach and ("stderr" in attach or not attach),
        tty=flags["tty"],
        detach_keys=detach_keys,
        signals=sig_proxy and not detach,
    )
    # All that can be wrong with the flags is told before anything is made.
    check_input(tty=attachment.tty, attach_stdin=attachment.stdin)
    if detach_keys is not None:
        interactive.parse_detach_keys(detach_keys)
    session.failure_code = 125
    container = create_container(session, image, command, {**flags, "detach": detach})
    session.progress.done()
    client = session.starting_client
    try:
        if detach:
            start(client, container)
            render.out(container)
            return
        leave(run_attached(client, container, attachment, removed_after=flags["rm"]))
    except StartFailed as failure:
        session.failure_code = failure.code
        raise


@click.command(
    cls=DeskCommand,
    interspersed=False,
    example="desk create --name web -p 8080:80 nginx\ndesk start web",
)
@container_flags
@arguments
@pass_session
def create(session: Session, image: str, command: tuple[str, ...], **flags: Any) -> None:
    """Create a container without starting it."""
    container = create_container(session, image, command, {**flags, "detach": False})
    session.progress.done()
    render.out(container)
