"""``desk logs`` and ``desk attach``: what a container writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import click

from desk.cli import complete, interactive, render, terminal
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.cli.starting import Attachment, leave, stay
from desk.cli.units import parse_moment
from desk.engine.streams import STDERR, Frame
from desk.errors import Conflict, UsageError


@click.command(cls=DeskCommand, example="desk logs -f --tail 100 web")
@click.option("--details", is_flag=True, help="Show what the log driver adds.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("--since", metavar="TIME", help="From this time on: 10m, or 2024-01-31T12:00:00Z.")
@click.option("-n", "--tail", metavar="LINES", default="all", help="Lines from the end (all).")
@click.option("-t", "--timestamps", is_flag=True, help="Show when each line was written.")
@click.option("--until", metavar="TIME", help="Up to this time.")
@click.argument("container", shell_complete=complete.containers)
@pass_session
def logs(
    session: Session,
    container: str,
    details: bool,
    follow: bool,
    since: str | None,
    tail: str,
    timestamps: bool,
    until: str | None,
) -> None:
    """Show what a container wrote."""
    if tail != "all" and not tail.lstrip("-").isdecimal():
        raise UsageError(f"invalid value {tail!r} for --tail", hint="Write a number, or all.")
    client = session.client
    config = client.containers.inspect(container)["Config"]
    options: dict[str, Any] = {
        "since": parse_moment(since) if since else None,
        "until": parse_moment(until) if until else None,
        "timestamps": timestamps,
        "tail": tail,
        "details": details,
        "tty": config["Tty"],
    }
    frames: Iterable[Frame]
    if follow:
        from desk.engine.following import follow_logs

        frames = follow_logs(client.containers, container, lost=render.tell_loss, **options)
    else:
        frames = client.containers.logs(container, **options)
    for frame in frames:
        write = render.err_bytes if frame.stream == STDERR else render.out_bytes
        write(frame.data)


@click.command(cls=DeskCommand, example="desk attach shell     (ctrl-p, ctrl-q detaches)")
@click.option("--detach-keys", metavar="KEYS", help="Keys that detach this terminal.")
@click.option("--no-stdin", is_flag=True, help="Do not pass on standard input.")
@click.option(
    "--sig-proxy/--no-sig-proxy", default=True, help="Pass signals on to the process (on)."
)
@click.argument("container", shell_complete=complete.running)
@pass_session
def attach(
    session: Session, container: str, detach_keys: str | None, no_stdin: bool, sig_proxy: bool
) -> None:
    """Connect this terminal to a running container."""
    client = session.client
    details = client.containers.inspect(container)
    identifier, config, state = details["Id"], details["Config"], details["State"]
    if not state.get("Running"):
        raise Conflict(
            f"container {container} is not running",
            hint=f"`desk start -ai {container}` starts it attached.",
        )
    if state.get("Paused"):
        raise Conflict(
            f"container {container} is paused", hint=f"`desk unpause {container}` first."
        )
    attachment = Attachment(
        stdin=not no_stdin and config["OpenStdin"],
        stdout=True,
        stderr=True,
        tty=config["Tty"],
        detach_keys=detach_keys,
        signals=sig_proxy and not config["Tty"],
    )
    terminal.check_input(tty=attachment.tty, attach_stdin=attachment.stdin)
    if detach_keys is not None:
        interactive.parse_detach_keys(detach_keys)
    # Registered before the streams: a container that removes itself has no exit code afterwards.
    ending = client.containers.begin_wait(identifier)
    with (
        contextlib.closing(ending),
        client.containers.attach(
            identifier,
            stdin=attachment.stdin,
            detach_keys=detach_keys,
            tty=attachment.tty,
        ) as stream,
        interactive.signals_passed_on(lambda name: client.containers.kill(identifier, signal=name))
        if attachment.signals
        else stream,
    ):
        if stay(client, identifier, stream, attachment):
            raise interactive.Detached
        code = ending.result().code
    leave(code)
