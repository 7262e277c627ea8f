"""What the shell offers when a name is asked for: containers, images, machines.

Completion never starts a machine and never complains: without an answer within a moment it
offers nothing.
"""

from __future__ import annotations

from typing import Any

import click

from desk.cli.session import Session
from desk.engine.client import EngineClient
from desk.engine.transport import UnixTransport, transport_for
from desk.errors import DeskError

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


def networks(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return _offer(ctx, incomplete, lambda client: [item["Name"] for item in client.networks.list()])


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
    url = session.engine_url
    transport = (
        transport_for(url)
        if url
        else UnixTransport(session.desk.home.machine(session.machine).engine_socket)
    )
    return EngineClient(transport, timeout_s=_TIMEOUT_S)
