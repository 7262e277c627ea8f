"""Desk's own handlers: who uses the machine's memory, and which containers ran out of it."""

from __future__ import annotations

from deskd.api.http import Answer, Request, json_response
from deskd.services.engine import Engine


async def kills(engine: Engine, _request: Request) -> Answer:
    """``GET /desk/out-of-memory``: the containers that ran out of memory in their last run."""
    return json_response(engine.memory.kills())


async def usage(engine: Engine, _request: Request) -> Answer:
    """``GET /desk/memory``: how the machine's memory is used, by whom, and the last hour of it."""
    return json_response(await engine.memory_use.usage())
