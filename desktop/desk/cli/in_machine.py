"""The command ``docker`` in a machine: Docker's commands for the engine there, none for machines.

For whoever logs in: ``vagrant ssh -c 'docker ps'``, ``desk machine ssh docker ps``. The guest has
only the packages that these commands need.
"""

from __future__ import annotations

import sys

import click

from desk.cli.catalog import DESK, SECTIONS
from desk.cli.framework import LazyGroup
from desk.cli.program import run_program

ENGINE = "unix:///run/docker.sock"
_OF_THE_LAPTOP = {*DESK, "registry", "undo"}

_SECTIONS = {
    title: found
    for title, entries in SECTIONS.items()
    if (found := {name: entry for name, entry in entries.items() if name not in _OF_THE_LAPTOP})
}


@click.group(cls=LazyGroup, sections=_SECTIONS, invoke_without_command=True)
@click.option(
    "-H",
    "--host",
    metavar="URL",
    envvar="DOCKER_HOST",
    default=ENGINE,
    help=f"Engine to use ({ENGINE}).",
)
@click.pass_context
def docker(ctx: click.Context, host: str) -> None:
    """Docker's commands, by Desk, for the engine of this machine."""
    ctx.obj.choose(host=host, machine="")
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run ``docker``."""
    sys.exit(run_program(docker, "docker"))


if __name__ == "__main__":
    main()
