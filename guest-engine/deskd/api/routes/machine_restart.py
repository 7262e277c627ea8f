"""Desk's own handlers: a restart of the machine, and what came back after it."""

from __future__ import annotations

from deskd.api.http import Answer, Request, json_response
from deskd.services.containers.machine_restart import RestartRequest
from deskd.services.engine import Engine


async def prepare(engine: Engine, request: Request) -> Answer:
    """``POST /desk/restart``: stop all containers, and remember which are to come back."""
    wanted = await request.optional_json(RestartRequest, RestartRequest())
    return json_response(await engine.restart.prepare(wanted))


async def report(engine: Engine, _request: Request) -> Answer:
    """``GET /desk/restart``: what was and what is of the containers that were to come back."""
    return json_response(engine.restart.report())
