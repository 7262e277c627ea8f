"""The groups that hold the same commands as the top level: ``desk container rm`` is ``desk rm``."""

from __future__ import annotations

import click

from desk.cli.catalog import CONTAINER_GROUP, IMAGE_GROUP, SYSTEM_GROUP
from desk.cli.framework import LazyGroup


@click.group(cls=LazyGroup, sections={"Commands": CONTAINER_GROUP})
def container() -> None:
    """Manage containers."""


@click.group(cls=LazyGroup, sections={"Commands": IMAGE_GROUP})
def image() -> None:
    """Manage images."""


@click.group(cls=LazyGroup, sections={"Commands": SYSTEM_GROUP})
def system() -> None:
    """Manage the engine: disk use, clean-up, facts, events."""
