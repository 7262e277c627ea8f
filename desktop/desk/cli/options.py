"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

table_format = click.option(
    "--format", "form", metavar="FORMAT", default="", help="table, json, or a Go template."
)
"""``--format`` of a command that prints a table."""

detail_format = click.option(
    "-f", "--format", "form", metavar="FORMAT", default="", help="json, or a Go template."
)
"""``--format`` of a command that prints an object."""

no_trunc = click.option("--no-trunc", is_flag=True, help="Do not shorten.")
quiet_ids = click.option("-q", "--quiet", is_flag=True, help="Print IDs only.")
quiet_names = click.option("-q", "--quiet", is_flag=True, help="Print names only.")

grace_period = click.option(
    "-t",
    "--time",
    "grace_s",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=20.0,
    help="Seconds for an orderly end (20).",
)
"""How long a machine may take to end by itself."""


def filters(help_text: str) -> Callable[[_Command], _Command]:
    """``--filter NAME=VALUE``, repeatable."""
    return click.option(
        "-f", "--filter", "filters", metavar="NAME=VALUE", multiple=True, help=help_text
    )
