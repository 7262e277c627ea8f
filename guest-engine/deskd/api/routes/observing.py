"""Handlers that look into running containers."""

from __future__ import annotations

from deskd.api.http import Answer, Request, Stream, json_lines, json_response
from deskd.services.engine import Engine


async def top(engine: Engine, request: Request) -> Answer:
    """``ContainerTop``"""
    return json_response(
        await engine.observing.top(request.path_values["id"], request.query.text("ps_args"))
    )


async def stats(engine: Engine, request: Request) -> Answer:
    """``ContainerStats``"""
    query = request.query
    measurements = await engine.observing.stats(
        request.path_values["id"],
        stream=query.flag("stream", default=True),
        one_shot=query.flag("one-shot"),
    )
    return Stream(json_lines(measurements))
