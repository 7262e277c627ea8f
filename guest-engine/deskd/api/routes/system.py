"""Handlers of the engine as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from deskd.api import older_clients
from deskd.api.greeting import PING_BODY, PING_HEADERS, PING_TYPE
from deskd.api.http import Answer, Request, Response, Stream, json_lines, json_response
from deskd.domain.filters import parse_filters
from deskd.domain.times import parse_moment
from deskd.errors import Unavailable, Unsupported
from deskd.services.engine import Engine
from deskd.services.version import version_document


async def ping(_engine: Engine, _request: Request) -> Answer:
    """Answer at once: clients ask this before anything else."""
    return Response(200, PING_BODY, PING_TYPE, PING_HEADERS)


async def version(_engine: Engine, _request: Request) -> Answer:
    """``SystemVersion``"""
    return json_response(version_document())


async def info(engine: Engine, request: Request) -> Answer:
    """``SystemInfo``"""
    found = await engine.system.info()
    return json_response(older_clients.shown_information(request.version, found))


async def events(engine: Engine, request: Request) -> Answer:
    """``SystemEvents``"""
    until = request.query.text("until")
    found = engine.events.subscribe(
        since_ns=parse_moment(request.query.text("since"), "since"),
        # 0 is a time long past here, not "no limit": such a request is answered at once.
        until_ns=0 if until == "0" else parse_moment(until, "until"),
        filters=parse_filters(request.query.text("filters")),
    )

    async def messages() -> AsyncIterator[dict[str, Any]]:
        try:
            async for event in found:
                yield event.as_api()
        finally:
            await found.aclose()  # type: ignore[attr-defined]  # an async generator

    return Stream(json_lines(messages()))


async def disk_usage(engine: Engine, request: Request) -> Answer:
    """``SystemDataUsage``"""
    found = await engine.system.disk_usage(request.query.texts("type"))
    return json_response(older_clients.shown_disk_usage(request.version, found))


async def auth(engine: Engine, request: Request) -> Answer:
    """``SystemAuth``"""
    # Few ask; the client of registries need not be part of every engine's start.
    from deskd.registry.authorization import Credentials

    token = await engine.distribution.log_in(await request.json(Credentials))
    return json_response({"Status": "Login Succeeded", "IdentityToken": token})


async def plugins(_engine: Engine, _request: Request) -> Answer:
    """``PluginList``: there are none."""
    return json_response([])


async def no_swarm(_engine: Engine, _request: Request) -> Answer:
    """Answer as an engine outside of a swarm."""
    raise Unavailable(
        'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to '
        "connect this node to swarm and try again."
    )


async def no_swarm_mode(_engine: Engine, _request: Request) -> Answer:
    """Refuse to become part of a swarm."""
    raise Unsupported("this engine serves one machine and cannot be part of a swarm")


async def no_build(_engine: Engine, _request: Request) -> Answer:
    """Refuse to build."""
    raise Unsupported(
        "this engine cannot build images yet; make one with `docker import` or `docker commit`"
    )
