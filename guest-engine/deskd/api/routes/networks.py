"""Handlers of networks."""

from __future__ import annotations

from deskd.api.http import NO_CONTENT, Answer, Request, Response, json_response
from deskd.domain.filters import parse_filters
from deskd.domain.network import (
    NetworkConnectRequest,
    NetworkCreateRequest,
    NetworkDisconnectRequest,
)
from deskd.services.engine import Engine
from deskd.services.networks import wanted


async def select(engine: Engine, request: Request) -> Answer:
    """``NetworkList``"""
    return json_response(await engine.networks.select(parse_filters(request.query.text("filters"))))


async def inspect(engine: Engine, request: Request) -> Answer:
    """``NetworkInspect``"""
    return json_response(await engine.networks.inspect(request.path_values["id"]))


async def create(engine: Engine, request: Request) -> Answer:
    """``NetworkCreate``"""
    created = await engine.networks.create(await request.json(NetworkCreateRequest))
    return json_response(created, 201)


async def remove(engine: Engine, request: Request) -> Answer:
    """``NetworkDelete``"""
    await engine.networks.remove(request.path_values["id"])
    return NO_CONTENT


async def connect(engine: Engine, request: Request) -> Answer:
    """``NetworkConnect``"""
    body = await request.json(NetworkConnectRequest)
    await engine.networks.connect(
        request.path_values["id"], body.container, wanted(body.endpoint_config)
    )
    return Response(200, content_type="")


async def disconnect(engine: Engine, request: Request) -> Answer:
    """``NetworkDisconnect``"""
    body = await request.json(NetworkDisconnectRequest)
    await engine.networks.disconnect(request.path_values["id"], body.container, force=body.force)
    return Response(200, content_type="")


async def prune(engine: Engine, request: Request) -> Answer:
    """``NetworkPrune``"""
    deleted = await engine.networks.prune(parse_filters(request.query.text("filters")))
    return json_response({"NetworksDeleted": deleted or None})
