"""What the shell offers when a name or a value is asked for: containers, images, machines…

Completion never starts a machine and never complains: without an answer within a moment it
offers nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from desk.cli.session import Session
from desk.errors import DeskError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from desk.engine.client import EngineClient

_TIMEOUT_S = 2.0


def machine_names(incomplete: str) -> list[str]:
    """Return the names of machines; looks at directories only."""
    desk = Session().desk
    try:
        names = sorted(entry.name for entry in desk.home.machines.iterdir())
    except OSError:
        return []
    return [name for name in names if name.startswith(incomplete) and desk.has_machine(name)]


def machines(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return machine_names(incomplete)


def containers(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of all containers that are not on the command line already."""
    return _offer(
        ctx,
        incomplete,
        lambda client: [
            name.lstrip("/")
            for container in client.containers.list(all_=True)
            for name in container["Names"]
        ],
    )


def running(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of running containers."""
    return _offer(
        ctx,
        incomplete,
        lambda client: [
            name.lstrip("/")
            for container in client.containers.list()
            for name in container["Names"]
        ],
    )


def images(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the tags of all images."""
    return _offer(
        ctx,
        incomplete,
        lambda client: [
            tag.removesuffix(":latest")
            for image in client.images.list()
            for tag in image.get("RepoTags") or ()
        ],
    )


def objects(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of all that ``desk inspect`` knows."""

    def ask(client: EngineClient) -> list[str]:
        names = [
            name.lstrip("/")
            for container in client.containers.list(all_=True)
            for name in container["Names"]
        ]
        names += [
            tag.removesuffix(":latest")
            for image in client.images.list()
            for tag in image.get("RepoTags") or ()
        ]
        names += [item["Name"] for item in client.networks.list()]
        return names + [item["Name"] for item in client.volumes.list()]

    return _offer(ctx, incomplete, ask)


def places(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return files of this computer, and containers with the colon that a path follows."""
    from click.shell_completion import CompletionItem

    found = [CompletionItem(incomplete, type="file")]
    if not incomplete.startswith(("/", ".", "~")) and ":" not in incomplete:
        found += [CompletionItem(f"{name}:") for name in containers(ctx, param, incomplete)]
    return found


def one_of(*values: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return what offers fixed values."""

    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def signals(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of signals, without SIG as Docker's users write them, or with it."""
    from signal import Signals

    prefix = "" if incomplete.startswith("SIG") else "SIG"
    names = sorted({number.name.removeprefix(prefix) for number in Signals})
    return [name for name in names if name.startswith(incomplete)]


def networks(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return _offer(ctx, incomplete, lambda client: [item["Name"] for item in client.networks.list()])


def faults(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of network faults."""
    return _offer(ctx, incomplete, lambda client: [item["Name"] for item in client.faults.list()])


def volumes(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return _offer(ctx, incomplete, lambda client: [item["Name"] for item in client.volumes.list()])


def _offer(ctx: click.Context, incomplete: str, ask: Any) -> list[str]:
    taken = {item for value in ctx.params.values() if isinstance(value, tuple) for item in value}
    session = Session()
    root = ctx.find_root().params
    session.choose(host=root.get("host") or "", machine=root.get("machine") or "")
    try:
        with _client(session) as client:
            names = ask(client)
    except DeskError:
        return []
    return sorted(name for name in names if name.startswith(incomplete) and name not in taken)


def _client(session: Session) -> EngineClient:
    from desk.engine.client import EngineClient
    from desk.engine.transport import UnixTransport, transport_for

    url = session.engine_url
    transport = (
        transport_for(url)
        if url
        else UnixTransport(session.desk.home.machine(session.machine).engine_socket)
    )
    return EngineClient(transport, timeout_s=_TIMEOUT_S)
