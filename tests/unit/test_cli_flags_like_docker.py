"""Every command and flag of Docker's is one of Desk's, with the same type and default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest

from desk.cli.program import cli

REFERENCE = Path(__file__).resolve().parents[1] / "data" / "docker_cli_28.txt"

_ONE_PLATFORM = "an engine of API 1.47 keeps images of one platform"
_SWARM = "a Swarm's volumes, networks and nodes"
_CHECKPOINT = "checkpoints are an experiment of dockerd's, made by CRIU"

LEFT_OUT = {
    "volume update": _SWARM,
}
"""Commands that Desk does not have, with the reason."""

FLAGS_LEFT_OUT = {
    "--use-api-socket": "an experiment that hands the engine and its passwords to a container",
    "start --checkpoint": _CHECKPOINT,
    "start --checkpoint-dir": _CHECKPOINT,
    "history --platform": _ONE_PLATFORM,
    "image inspect --platform": _ONE_PLATFORM,
    "load --platform": _ONE_PLATFORM,
    "push --platform": _ONE_PLATFORM,
    "rmi --platform": _ONE_PLATFORM,
    "save --platform": _ONE_PLATFORM,
    "network connect --gw-priority": "needs API 1.48",
    "network create --ipv4": "needs API 1.48",
    "volume ls --cluster": _SWARM,
    "volume create --availability": _SWARM,
    "volume create --group": _SWARM,
    "volume create --limit-bytes": _SWARM,
    "volume create --required-bytes": _SWARM,
    "volume create --scope": _SWARM,
    "volume create --secret": _SWARM,
    "volume create --sharing": _SWARM,
    "volume create --topology-preferred": _SWARM,
    "volume create --topology-required": _SWARM,
    "volume create --type": _SWARM,
}
"""Flags that Desk does not have, of one command or of all, with the reason."""

LISTS = {"list", "strings", "map", "ulimit", "mount", "filter", "network", "gpu-request"}
NUMBERS = {"int", "uint", "uint16"}
TEXTS = {"string", "bytes", "decimal", "duration"}


@dataclass
class Flag:
    name: str
    short: str
    type: str
    default: str


@dataclass
class Command:
    spellings: list[str]
    flags: list[Flag] = field(default_factory=list)


def reference() -> list[Command]:
    found: list[Command] = []
    for line in REFERENCE.read_text().splitlines():
        if line.startswith("  "):
            match = re.fullmatch(r"  (?:(-\w) )?(--[\w-]+) ([\w-]+)(?: = (.+))?", line)
            assert match, line
            found[-1].flags.append(Flag(match[2], match[1] or "", match[3], match[4] or ""))
        elif not line.startswith("#"):
            found.append(Command(line.split(" | ")))
    return found


COMMANDS = reference()


def find(spelling: str) -> click.Command | None:
    """Return Desk's command of that spelling."""
    command: click.Command | None = cli
    context = click.Context(cli, info_name="desk")
    for word in spelling.split():
        if not isinstance(command, click.Group):
            return None
        command = command.get_command(context, word)
        if command is None:
            return None
        context = click.Context(command, info_name=word, parent=context)
    return command


def options(command: click.Command) -> dict[str, click.Option]:
    return {
        name: option
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
    }


def mistakes(flag: Flag, found: dict[str, click.Option]) -> Iterator[str]:
    option = found.get(flag.name)
    if option is None:
        yield "is missing"
        return
    if flag.short and found.get(flag.short) is not option:
        yield f"has no {flag.short}"
    if flag.type == "switch":
        kind = option.is_flag
    elif flag.type in NUMBERS:
        kind = option.type is click.INT and not option.multiple
    elif flag.type in TEXTS:
        kind = option.type is click.STRING and not option.multiple and not option.is_flag
    else:
        assert flag.type in LISTS, flag
        kind = option.multiple
    if not kind:
        yield f"is no {flag.type}"
    default = plain(option.get_default(click.Context(click.Command("x")), call=False))
    if default != flag.default:
        yield f"has the default {default!r}, not {flag.default!r}"


def plain(default: Any) -> str:
    """Return a default as Docker's help shows it; what means "not given" is empty."""
    if default is True:
        return "true"
    return (
        ""
        if default in (None, False, (), "") or repr(default) == "Sentinel.UNSET"
        else str(default)
    )


def left_out(command: Command, flag: Flag) -> bool:
    names = [flag.name, *(f"{spelling} {flag.name}" for spelling in command.spellings)]
    return any(name in FLAGS_LEFT_OUT for name in names)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.spellings[0])
def test_the_command_has_dockers_spellings_and_flags(command: Command) -> None:
    for spelling in command.spellings:
        ours = find(spelling)
        if ours is None:
            assert spelling in LEFT_OUT, f"desk {spelling} is missing"
            continue
        found = options(ours)
        wrong = [
            f"{flag.name} {mistake}"
            for flag in command.flags
            if not left_out(command, flag)
            for mistake in mistakes(flag, found)
        ]
        assert not wrong, f"desk {spelling}: {'; '.join(wrong)}"


def test_nothing_is_left_out_that_is_there() -> None:
    assert not [spelling for spelling in LEFT_OUT if find(spelling)]
    known = {
        name
        for command in COMMANDS
        for flag in command.flags
        if left_out(command, flag)
        for spelling in command.spellings
        if (ours := find(spelling)) is not None and flag.name not in options(ours)
        for name in (flag.name, f"{spelling} {flag.name}")
    }
    assert set(FLAGS_LEFT_OUT) <= known, set(FLAGS_LEFT_OUT) - known
