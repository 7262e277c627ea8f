"""Commands that move containers from one state to another."""

from __future__ import annotations

from typing import Any

import click

from desk.cli import complete, render
from desk.cli.container_spec import plain_limits, size_limits
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, for_each, pass_session
from desk.cli.specs import parse_restart
from desk.errors import InvalidRequest

_containers = click.argument(
    "containers",
    metavar="CONTAINER...",
    nargs=-1,
    required=True,
    shell_complete=complete.containers,
)
_running = click.argument(
    "containers", metavar="CONTAINER...", nargs=-1, required=True, shell_complete=complete.running
)
_signal = click.option(
    "-s",
    "--signal",
    metavar="SIGNAL",
    shell_complete=complete.signals,
    help="Signal to send first.",
)
_timeout = click.option(
    "-t",
    "--timeout",
    "--time",
    metavar="SECONDS",
    type=int,
    help="Seconds to wait before killing; -1 waits for ever.",
)


@click.command(cls=DeskCommand, example="desk stop -t 30 web db")
@_signal
@_timeout
@_running
@pass_session
def stop(
    session: Session, containers: tuple[str, ...], signal: str | None, timeout: int | None
) -> None:
    """Stop running containers."""
    calls = session.client.containers
    for_each(containers, lambda name: calls.stop(name, timeout_s=timeout, signal=signal))


@click.command(cls=DeskCommand, example="desk restart web")
@_signal
@_timeout
@_containers
@pass_session
def restart(
    session: Session, containers: tuple[str, ...], signal: str | None, timeout: int | None
) -> None:
    """Restart containers."""
    calls = session.starting_client.containers
    for_each(containers, lambda name: calls.restart(name, timeout_s=timeout, signal=signal))


@click.command(cls=DeskCommand, example="desk kill --signal HUP web")
@click.option(
    "-s",
    "--signal",
    metavar="SIGNAL",
    shell_complete=complete.signals,
    help="Signal to send (KILL).",
)
@_running
@pass_session
def kill(session: Session, containers: tuple[str, ...], signal: str | None) -> None:
    """Kill running containers, or send them a signal."""
    for_each(containers, lambda name: session.client.containers.kill(name, signal=signal))


@click.command(cls=DeskCommand, example="desk rm -f web\ndesk rm $(desk ps -aq)")
@click.option("-f", "--force", is_flag=True, help="Kill a running container first.")
@click.option("-l", "--link", is_flag=True, help="Remove the link, not the container.")
@click.option("-v", "--volumes", is_flag=True, help="Remove its anonymous volumes too.")
@_containers
@pass_session
def rm(
    session: Session, containers: tuple[str, ...], force: bool, link: bool, volumes: bool
) -> None:
    """Remove containers."""
    calls = session.removing_client.containers
    for_each(
        containers,
        lambda name: calls.remove(name, force=force, link=link, volumes=volumes),
        missing_ok=force,
    )


@click.command(cls=DeskCommand, example="desk pause web")
@_running
@pass_session
def pause(session: Session, containers: tuple[str, ...]) -> None:
    """Pause all processes in containers."""
    for_each(containers, session.client.containers.pause)


@click.command(cls=DeskCommand, example="desk unpause web")
@_running
@pass_session
def unpause(session: Session, containers: tuple[str, ...]) -> None:
    """Let paused containers go on."""
    for_each(containers, session.client.containers.unpause)


@click.command(cls=DeskCommand, example="desk rename web old-web")
@click.argument("container", shell_complete=complete.containers)
@click.argument("name")
@pass_session
def rename(session: Session, container: str, name: str) -> None:
    """Rename a container."""
    session.client.containers.rename(container, name)


@click.command(cls=DeskCommand, example="desk wait web")
@_containers
@pass_session
def wait(session: Session, containers: tuple[str, ...]) -> None:
    """Wait until containers end, and print their exit codes."""

    def wait_for(name: str) -> None:
        ended = session.client.containers.wait(name)
        if ended.error:
            render.note(f"desk: {name}: {ended.error}")
        render.out(str(ended.code))

    for_each(containers, wait_for, silent=True)


@click.command(cls=DeskCommand, example="desk update --memory 1g --restart always web")
@click.option("--blkio-weight", type=int, help="Block I/O weight, 10 to 1000.")
@click.option("--cpu-period", type=int, help="CPU period in microseconds.")
@click.option("--cpu-quota", type=int, help="CPU time per period in microseconds.")
@click.option("--cpu-rt-period", type=int, help="Real-time CPU period in microseconds.")
@click.option("--cpu-rt-runtime", type=int, help="Real-time CPU time in microseconds.")
@click.option("-c", "--cpu-shares", type=int, help="CPU shares (relative weight).")
@click.option("--cpus", metavar="NUMBER", help="Number of CPUs, such as 1.5.")
@click.option("--cpuset-cpus", metavar="CPUS", help="CPUs to run on, such as 0-2,4.")
@click.option("--cpuset-mems", metavar="NODES", help="Memory nodes to use.")
@click.option("-m", "--memory", metavar="SIZE", help="Memory limit, such as 512m.")
@click.option("--memory-reservation", metavar="SIZE", help="Soft memory limit.")
@click.option("--memory-swap", metavar="SIZE", help="Memory and swap together; -1 for no limit.")
@click.option("--pids-limit", type=int, help="Limit of processes and threads; -1 for none.")
@click.option("--restart", metavar="POLICY", help="no, always, unless-stopped, on-failure[:N].")
@_containers
@pass_session
def update(
    session: Session, containers: tuple[str, ...], restart: str | None, **flags: Any
) -> None:
    """Change limits of containers."""
    changes = {**size_limits(flags), **plain_limits(flags)}
    if restart is not None:
        changes["RestartPolicy"] = parse_restart(restart)
    if not changes:
        raise InvalidRequest("nothing to change was named", hint="See `desk update --help`.")

    def change(name: str) -> None:
        for warning in session.client.containers.update(name, changes).get("Warnings") or ():
            render.warn(warning)

    for_each(containers, change)
