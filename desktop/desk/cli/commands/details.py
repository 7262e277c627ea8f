"""``desk inspect``, ``port``, ``diff`` and ``top``: one object, looked at closely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from desk.cli import complete, options, render
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.engine.client import EngineClient
from desk.errors import EngineError, EngineUnreachable, InvalidRequest, NotFound

_TOP_COLUMN = 20

Look = Callable[[str], Any]


_size = click.option("-s", "--size", is_flag=True, help="Show sizes of containers.")


def _looks(client: EngineClient, *, size: bool = False, verbose: bool = False) -> dict[str, Look]:
    return {
        "container": lambda name: client.containers.inspect(name, size=size),
        "image": client.images.inspect,
        "network": lambda name: client.networks.inspect(name, verbose=verbose),
        "volume": client.volumes.inspect,
    }


def inspect_all(names: tuple[str, ...], looks: dict[str, Look], form: str) -> None:
    """Print the objects that exist; name the others, and end with exit code 1 for them."""
    found: list[Any] = []
    kinds: list[str] = []
    missing: list[EngineError | NotFound] = []
    for name in names:
        try:
            kind, details = _find(name, looks)
        except EngineUnreachable:
            raise
        except (EngineError, NotFound) as failure:
            missing.append(failure)
        else:
            found.append(details)
            kinds.append(kind.capitalize())
    if found or not form:
        render.print_formatted(found, form, kinds=kinds)
    for reason in missing:
        render.error(reason)
    if missing:
        raise click.exceptions.Exit(1)


def _find(name: str, looks: dict[str, Look]) -> tuple[str, Any]:
    for kind, look in looks.items():
        try:
            return kind, look(name)
        except EngineError as error:
            # 501: an engine without that kind of object has none of that name.
            if error.status not in (404, 501) or len(looks) == 1:
                raise
    raise NotFound(f"no such object: {name}", hint="`desk ps -a` and `desk images` list names.")


@click.command(cls=DeskCommand, example="desk inspect --format '{{.State.Pid}}' web")
@options.detail_format
@_size
@click.option(
    "--type",
    "kind",
    metavar="TYPE",
    shell_complete=complete.one_of("container", "image", "network", "volume"),
    help="container, image, network or volume.",
)
@click.argument(
    "names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete.objects
)
@pass_session
def inspect(
    session: Session, names: tuple[str, ...], form: str, size: bool, kind: str | None
) -> None:
    """Show everything about containers, images and more."""
    looks = _looks(session.client, size=size)
    if kind is not None:
        if kind not in looks:
            raise InvalidRequest(f"invalid --type {kind!r}", hint=f"It is {', '.join(looks)}.")
        looks = {kind: looks[kind]}
    inspect_all(names, looks, form)


def _kind_command(kind: str, sentence: str, completion: Any, *extra: Any) -> Any:
    """Return ``desk KIND inspect``; ``extra`` are options that only this kind has."""

    @options.detail_format
    @click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=completion)
    @pass_session
    def command(session: Session, names: tuple[str, ...], form: str, **extra_flags: bool) -> None:
        inspect_all(names, {kind: _looks(session.client, **extra_flags)[kind]}, form)

    for option in extra:
        command = option(command)
    example = f"desk {kind} inspect NAME"
    return click.command("inspect", cls=DeskCommand, help=sentence, example=example)(command)


inspect_container = _kind_command(
    "container", "Show everything about containers.", complete.containers, _size
)
inspect_image = _kind_command("image", "Show everything about images.", complete.images)
inspect_network = _kind_command(
    "network",
    "Show everything about networks.",
    complete.networks,
    click.option("-v", "--verbose", is_flag=True, help="Show what a swarm knows of it too."),
)
inspect_volume = _kind_command("volume", "Show everything about volumes.", complete.volumes)


@click.command(cls=DeskCommand, example="desk port web\ndesk port web 80/tcp")
@click.argument("container", shell_complete=complete.running)
@click.argument("private_port", metavar="[PORT[/PROTOCOL]]", required=False)
@pass_session
def port(session: Session, container: str, private_port: str | None) -> None:
    """List a container's published ports."""
    details = session.client.containers.inspect(container)
    published = details["NetworkSettings"].get("Ports") or {}
    if private_port is None:
        for name in sorted(published, key=_port_order):
            for address in _addresses(published[name]):
                render.out(f"{name} -> {address}")
        return
    name = private_port if "/" in private_port else f"{private_port}/tcp"
    addresses = _addresses(published.get(name))
    if not addresses:
        raise NotFound(
            f"container {container} does not publish port {name}",
            hint=f"`desk port {container}` lists what it publishes.",
        )
    for address in addresses:
        render.out(address)


def _port_order(name: str) -> tuple[int, str]:
    number, _, protocol = name.partition("/")
    return int(number), protocol


def _addresses(bindings: list[dict[str, str]] | None) -> list[str]:
    return [
        f"[{item['HostIp']}]:{item['HostPort']}"
        if ":" in item["HostIp"]
        else f"{item['HostIp']}:{item['HostPort']}"
        for item in bindings or ()
    ]


@click.command(cls=DeskCommand, example="desk diff web")
@click.argument("container", shell_complete=complete.containers)
@pass_session
def diff(session: Session, container: str) -> None:
    """List what changed in a container's files."""
    for change in session.client.containers.changes(container):
        render.out(f"{'CAD'[change['Kind']]} {change['Path']}")


@click.command(cls=DeskCommand, interspersed=False, example="desk top web -o pid,user,cmd")
@click.argument("container", shell_complete=complete.running)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[PS OPTIONS]...")
@pass_session
def top(session: Session, container: str, options: tuple[str, ...]) -> None:
    """List the processes in a container."""
    table = session.client.containers.top(container, " ".join(options) or None)
    render.print_columns([table["Titles"], *(table["Processes"] or ())], narrowest=_TOP_COLUMN)
