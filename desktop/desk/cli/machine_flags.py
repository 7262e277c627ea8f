"""Flags that say what a new machine is, for ``desk up`` and ``desk machine create``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from desk.cli.specs import parse_pairs
from desk.errors import UsageError
from desk.machine.model import LEAST_MEMORY_MIB, MachineSpec
from desk.settings import MachineDefaults
from desk.sizes import parse_size

F = TypeVar("F", bound=Callable[..., Any])

_MIB = 1024**2


def machine_flags(function: F) -> F:
    """Decorate a command with ``--driver``, ``--memory`` and the others."""
    for option in reversed(
        (
            click.option("-d", "--driver", metavar="DRIVER", help="qemu, vagrant, ssh or local."),
            click.option("--memory", metavar="SIZE", help="Memory, such as 4g (ceiling)."),
            click.option("--cpus", metavar="COUNT", type=click.IntRange(1), help="CPUs."),
            click.option("--disk", metavar="SIZE", help="Size of the data disk, such as 60g."),
            click.option(
                "--image",
                metavar="PATH|URL",
                help="Guest image: a path, or a URL followed by #sha256=…",
            ),
            click.option(
                "-o",
                "--option",
                "options",
                metavar="NAME=VALUE",
                multiple=True,
                help="Option of the driver, such as host=… for ssh.",
            ),
        )
    ):
        function = option(function)
    return function


def new_spec(name: str, flags: Mapping[str, Any], defaults: MachineDefaults) -> MachineSpec:
    """Return the specification of a new machine: the flags over the settings' defaults."""
    spec = MachineSpec(
        name=name,
        driver=defaults.driver,
        memory_mib=defaults.memory_mib,
        cpus=defaults.cpus,
        disk_gib=defaults.disk_gib,
        image=defaults.image,
    )
    return replace(spec, **given(flags))


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a specification that the flags set."""
    fields: dict[str, Any] = {}
    for name in ("driver", "cpus", "image"):
        if flags[name] is not None:
            fields[name] = flags[name]
    if flags["memory"] is not None:
        fields["memory_mib"] = memory_mib(flags["memory"])
    if flags["disk"] is not None:
        fields["disk_gib"] = disk_gib(flags["disk"])
    if flags["options"]:
        fields["options"] = parse_pairs(flags["options"], flag="--option")
    return fields


def memory_mib(text: str) -> int:
    """Return the value of ``--memory``; a bare number is MiB."""
    return _count(text, "--memory", _MIB, LEAST_MEMORY_MIB)


def disk_gib(text: str, *, flag: str = "--disk") -> int:
    """Return the value of ``--disk``; a bare number is GiB."""
    return _count(text, flag, 1024 * _MIB, 1)


def _count(text: str, flag: str, unit_bytes: int, least: int) -> int:
    """Return a size in MiB or GiB; a bare number counts in that unit already."""
    bare = text.strip()
    count = int(bare) if bare.isdecimal() else parse_size(bare, what=flag) // unit_bytes
    if count < least:
        unit = "MiB" if unit_bytes == _MIB else "GiB"
        raise UsageError(f"{flag} {text} is too small", hint=f"At least {least} {unit} are needed.")
    return count
