"""Handlers of containers: creation, life and death."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from deskd.api import older_clients
from deskd.api.http import (
    NO_CONTENT,
    OUT_OF_MEMORY,
    WARNING,
    Answer,
    Request,
    Response,
    Stream,
    decode,
    json_response,
)
from deskd.domain.container import ApiStruct, ContainerConfig, HostConfig, NetworkingConfig
from deskd.domain.filters import parse_filters
from deskd.errors import InvalidArgument, NotFound
from deskd.services.containers.creation import CreateRequest
from deskd.services.containers.registry import WaitResult
from deskd.services.engine import Engine


class _CreateBody(ApiStruct, frozen=True):
    """What a create request has beside the fields of ``ContainerConfig``."""

    host_config: HostConfig = HostConfig()
    networking_config: NetworkingConfig = NetworkingConfig()


async def create(engine: Engine, request: Request) -> Answer:
    """``ContainerCreate``"""
    text, version = await request.json_text(), request.version
    config, body = decode(text, ContainerConfig), decode(text, _CreateBody)
    container, warnings = await engine.creation.create(
        CreateRequest(
            config=older_clients.create_config(version, config),
            host_config=older_clients.create_host_config(version, body.host_config),
            networking=body.networking_config,
            name=request.query.text("name"),
            platform=request.query.text("platform") if version >= (1, 41) else "",
            recursive_read_only=older_clients.knows_recursive_read_only(version),
        )
    )
    warnings += older_clients.create_warnings(version, config)
    return json_response({"Id": container.id, "Warnings": warnings}, 201)


async def select(engine: Engine, request: Request) -> Answer:
    """``ContainerList``; a header tells how many ran out of memory."""
    query = request.query
    found = await engine.listing.select(
        parse_filters(query.text("filters")),
        everything=query.flag("all"),
        limit=query.integer("limit", 0) or 0,
        size=query.flag("size"),
    )
    kills = str(engine.memory.number_of_kills())
    shown = older_clients.shown_summaries(request.version, found)
    return json_response(shown, headers=((OUT_OF_MEMORY, kills),))


async def inspect(engine: Engine, request: Request) -> Answer:
    """``ContainerInspect``"""
    found = await engine.inspection.inspect(
        request.path_values["id"], size=request.query.flag("size")
    )
    return json_response(older_clients.shown_container(request.version, found))


async def start(engine: Engine, request: Request) -> Answer:
    """``ContainerStart``; what will not fit into the machine's memory is told by a header, since
    the answer has no body."""
    reference = request.path_values["id"]
    warning = engine.memory_fit.warning(reference)
    await engine.lifecycle.start(reference)
    return Response(204, content_type="", headers=((WARNING, warning),)) if warning else NO_CONTENT


async def stop(engine: Engine, request: Request) -> Answer:
    """``ContainerStop``"""
    await engine.lifecycle.stop(
        request.path_values["id"],
        timeout_s=request.query.integer("t"),
        signal=request.query.text("signal"),
    )
    return NO_CONTENT


async def restart(engine: Engine, request: Request) -> Answer:
    """``ContainerRestart``"""
    await engine.lifecycle.restart(
        request.path_values["id"],
        timeout_s=request.query.integer("t"),
        signal=request.query.text("signal"),
    )
    return NO_CONTENT


async def kill(engine: Engine, request: Request) -> Answer:
    """``ContainerKill``"""
    await engine.lifecycle.kill(request.path_values["id"], request.query.text("signal"))
    return NO_CONTENT


async def pause(engine: Engine, request: Request) -> Answer:
    """``ContainerPause``"""
    await engine.lifecycle.pause(request.path_values["id"])
    return NO_CONTENT


async def unpause(engine: Engine, request: Request) -> Answer:
    """``ContainerUnpause``"""
    await engine.lifecycle.unpause(request.path_values["id"])
    return NO_CONTENT


async def rename(engine: Engine, request: Request) -> Answer:
    """``ContainerRename``"""
    await engine.lifecycle.rename(request.path_values["id"], request.query.text("name"))
    return NO_CONTENT


async def update(engine: Engine, request: Request) -> Answer:
    """``ContainerUpdate``"""
    changes = await request.json(HostConfig)  # its resources and restart policy, on one level
    warnings = await engine.updating.update(request.path_values["id"], changes)
    return json_response({"Warnings": warnings})


async def wait(engine: Engine, request: Request) -> Answer:
    """``ContainerWait``: the head goes out at once, the end of the container is the body."""
    ended = engine.lifecycle.wait(request.path_values["id"], request.query.text("condition"))
    return Stream(_wait_result(ended))


async def _wait_result(ended: asyncio.Future[WaitResult]) -> AsyncIterator[bytes]:
    try:
        result = await ended
    finally:
        ended.cancel()
    body: dict[str, object] = {"StatusCode": result.exit_code}
    if result.error:
        body["Error"] = {"Message": result.error}
    yield msgspec.json.encode(body) + b"\n"


async def remove(engine: Engine, request: Request) -> Answer:
    """``ContainerDelete``"""
    query = request.query
    if query.flag("link"):
        engine.registry.get(request.path_values["id"])  # Docker's order: 404 before 400
        raise InvalidArgument("Conflict, cannot remove the default link name of the container")
    await engine.lifecycle.remove(
        request.path_values["id"],
        force=query.flag("force"),
        volumes=query.flag("v"),
        group=engine.bin.group(query.text("bin")),
    )
    return NO_CONTENT


async def unlink(engine: Engine, request: Request) -> Answer:
    """``ContainerDelete`` of a link: ``/containers/OTHER/ALIAS?link=1``."""
    if not request.query.flag("link"):
        raise NotFound("page not found")
    engine.endpoints.unlink(request.path_values["id"], request.path_values["alias"])
    return NO_CONTENT


async def prune(engine: Engine, request: Request) -> Answer:
    """``ContainerPrune``"""
    filters = parse_filters(request.query.text("filters"))
    group = engine.bin.group(request.query.text("bin"))
    return json_response(await engine.listing.prune(filters, group=group))
