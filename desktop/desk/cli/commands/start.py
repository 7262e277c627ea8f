"""``desk start``."""

from __future__ import annotations

import click

from desk.cli import complete, render
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, for_each, pass_session
from desk.cli.starting import Attachment, StartFailed, leave, run_attached
from desk.errors import InvalidRequest


@click.command(cls=DeskCommand, example="desk start web\ndesk start -ai shell")
@click.option("-a", "--attach", is_flag=True, help="Show its output and pass on signals.")
@click.option("--detach-keys", metavar="KEYS", help="Keys that detach this terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Pass on standard input too.")
@click.option(
    "--sig-proxy/--no-sig-proxy", default=True, help="Pass signals on to the process (on)."
)
@click.argument(
    "containers",
    metavar="CONTAINER...",
    nargs=-1,
    required=True,
    shell_complete=complete.containers,
)
@pass_session
def start(
    session: Session,
    containers: tuple[str, ...],
    attach: bool,
    detach_keys: str | None,
    interactive: bool,
    sig_proxy: bool,
) -> None:
    """Start stopped containers."""
    client = session.starting_client
    if not attach and not interactive:
        calls = client.containers
        for_each(containers, lambda name: calls.start(name, on_warning=render.warn))
        return
    if len(containers) > 1:
        raise InvalidRequest(
            "only one container can be attached to", hint="Leave -a and -i out, or name one."
        )
    details = client.containers.inspect(containers[0])
    config = details["Config"]
    attachment = Attachment(
        stdin=interactive and config["OpenStdin"],
        stdout=True,
        stderr=True,
        tty=config["Tty"],
        detach_keys=detach_keys,
        signals=sig_proxy,
    )
    removed_after = details["HostConfig"]["AutoRemove"]
    try:
        leave(
            run_attached(
                client,
                details["Id"],
                attachment,
                removed_after=removed_after,
                on_warning=render.warn,
            )
        )
    except StartFailed as failure:
        session.failure_code = 1 if failure.code == 125 else failure.code
        raise
