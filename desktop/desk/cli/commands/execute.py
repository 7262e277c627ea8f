"""``desk exec``."""

from __future__ import annotations

import contextlib
import os

import click

from desk.cli import complete, interactive, terminal
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.cli.specs import parse_env, read_env_file
from desk.cli.starting import leave


@click.command(
    "exec",
    cls=DeskCommand,
    interspersed=False,
    example="desk exec -it web sh\ndesk exec -u root web id",
)
@click.option("-d", "--detach", is_flag=True, help="Run in the background.")
@click.option("--detach-keys", metavar="KEYS", help="Keys that detach this terminal.")
@click.option("-e", "--env", metavar="NAME[=VALUE]", multiple=True, help="Set a variable.")
@click.option("--env-file", metavar="FILE", multiple=True, help="Read variables from a file.")
@click.option("-i", "--interactive", "interactive_", is_flag=True, help="Pass on standard input.")
@click.option("--privileged", is_flag=True, help="Give the process all capabilities.")
@click.option("-t", "--tty", is_flag=True, help="Give the process a terminal.")
@click.option("-u", "--user", metavar="USER[:GROUP]", default="", help="User and group.")
@click.option("-w", "--workdir", metavar="PATH", default="", help="Working directory.")
@click.argument("container", shell_complete=complete.running)
@click.argument(
    "command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARG]..."
)
@pass_session
def execute(
    session: Session,
    container: str,
    command: tuple[str, ...],
    detach: bool,
    detach_keys: str | None,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    interactive_: bool,
    privileged: bool,
    tty: bool,
    user: str,
    workdir: str,
) -> None:
    """Execute a command in a running container."""
    stdin = interactive_ and not detach
    terminal.check_input(tty=tty, attach_stdin=stdin)
    if detach_keys is not None:
        interactive.parse_detach_keys(detach_keys)
    client = session.client
    variables = [entry for file in env_file for entry in read_env_file(file)]
    window = terminal.size() if tty else None
    config = {
        "AttachStdin": stdin,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "Cmd": list(command),
        "DetachKeys": detach_keys or "",
        "Env": parse_env([*variables, *env], os.environ),
        "Privileged": privileged,
        "Tty": tty,
        "User": user,
        "WorkingDir": workdir,
    }
    if window is not None:
        config["ConsoleSize"] = [window.rows, window.columns]
    process = client.execs.create(container, config)
    if detach:
        client.execs.start_detached(process, tty=tty)
        return
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(
            client.execs.start(
                process,
                tty=tty,
                rows=window.rows if window else None,
                columns=window.columns if window else None,
            )
        )
        if tty and stdin:
            stack.enter_context(terminal.raw())
        if window is not None:
            stack.enter_context(
                interactive.window_size_followed(
                    lambda now: client.execs.resize(process, rows=now.rows, columns=now.columns)
                )
            )
        if interactive.relay(stream, tty=tty, stdin=stdin, detach_keys=detach_keys):
            raise interactive.Detached
    leave(client.execs.inspect(process).get("ExitCode") or 0)
