"""``desk ps``, which is also ``desk container ls``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from desk.cli import options, render
from desk.cli.container_rows import container_row, table
from desk.cli.filters import parse_filters
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.cli.units import ago


def _command(name: str) -> Any:
    @click.command(
        name,
        cls=DeskCommand,
        example=f"desk {name} -a --filter status=exited\n"
        f"desk {name} --format 'table {{{{.Names}}}}\\t{{{{.Status}}}}'",
    )
    @click.option("-a", "--all", "all_", is_flag=True, help="Show stopped ones too.")
    @options.filters("Show those that match, such as status=running or name=web.")
    @options.table_format
    @click.option(
        "-n",
        "--last",
        metavar="COUNT",
        type=int,
        default=-1,
        help="Show the last created ones.",
    )
    @click.option("-l", "--latest", is_flag=True, help="Show the last created one.")
    @options.no_trunc
    @options.quiet_ids
    @click.option("-s", "--size", is_flag=True, help="Show sizes.")
    @pass_session
    def command(
        session: Session,
        all_: bool,
        filters: tuple[str, ...],
        form: str,
        last: int,
        latest: bool,
        no_trunc: bool,
        quiet: bool,
        size: bool,
    ) -> None:
        """List containers."""
        if quiet and form:
            render.warn("Ignoring custom format, because both --format and --quiet are set.")
            form = ""
        limit = 1 if latest else last if last > 0 else None
        containers, kills = session.client.containers.list_with_kills(
            all_=all_,
            limit=limit,
            size=size or ".Size" in form or "json ." in form,
            filters=parse_filters(filters),
        )
        rows = (container_row(item, truncate=not no_trunc) for item in containers)
        table(size=size).print(rows, form=form, quiet=quiet)
        if kills and containers and not form and not quiet:
            _tell_out_of_memory(session, {item["Id"] for item in containers})

    return command


def _tell_out_of_memory(session: Session, listed: Collection[str]) -> None:
    """Name the listed containers that ran out of memory, with the reason and the remedy."""
    for kill in session.client.system.out_of_memory():
        if kill["Id"] in listed:
            when = ago(kill["TimeNano"] / 1e9)
            render.note(f"Out of memory: {kill['Reason']} ({when}). {kill['Remedy']}")


ps = _command("ps")
ls = _command("ls")
