"""Flags that say what a new machine is, for ``desk up`` and ``desk machine create``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from desk.cli.framework import SectionOption
from desk.cli.specs import parse_pairs
from desk.errors import UsageError
from desk.machine.engine_settings import LISTS, check_engine_options
from desk.machine.model import LEAST_MEMORY_MIB, MachineSpec
from desk.settings import MachineDefaults
from desk.sizes import parse_size

F = TypeVar("F", bound=Callable[..., Any])

_MIB = 1024**2
_ENGINE_FLAGS = {
    "engine-env": ("engine_env", "NAME=VALUE", "Variable of the engine."),
    "engine-insecure-registry": (
        "insecure_registry",
        "HOST:PORT",
        "Registry that is reached without verified TLS.",
    ),
    "engine-label": ("engine_label", "NAME=VALUE", "Label of the engine."),
    "engine-opt": ("engine_opt", "FLAG=VALUE", "Flag of the engine, such as icc=false."),
    "engine-registry-mirror": ("registry_mirror", "URL", "Mirror that is asked before docker.io."),
}
"""Flags by their names: the machine's option, the value's form, the help."""


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
                help="Option of the driver, such as ssh_host=… for ssh.",
            ),
            *_engine_flags(),
        )
    ):
        function = option(function)
    return function


def _engine_flags() -> list[Callable[[F], F]]:
    """docker-machine's flags that set up the engine; for drivers whose engine Desk sets up."""
    flags = [
        click.option(
            f"--{name}",
            metavar=metavar,
            multiple=True,
            help=f"{text} Repeatable.",
            cls=SectionOption,
            section="Engine",
        )
        for name, (_option, metavar, text) in _ENGINE_FLAGS.items()
    ]
    storage = click.option(
        "--engine-storage-driver",
        metavar="DRIVER",
        help="overlay2, the only one.",
        cls=SectionOption,
        section="Engine",
    )
    return [*flags, storage]


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
    chosen = parse_pairs(flags["options"], flag="--option") if flags["options"] else {}
    for flag, (option, _metavar, _text) in _ENGINE_FLAGS.items():
        values = flags[flag.replace("-", "_")]
        if values:
            chosen[option] = LISTS[option].separator.join(values)
    if flags["engine_storage_driver"]:
        chosen["storage_driver"] = flags["engine_storage_driver"]
    if chosen:
        check_engine_options(chosen)
        fields["options"] = chosen
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
