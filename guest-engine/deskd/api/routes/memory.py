"""Desk's own handler: which containers ran out of memory, and why."""

from __future__ import annotations

from deskd.api.http import Answer, Request, json_response
from deskd.services.engine import Engine


async def kills(engine: Engine, _request: Request) -> Answer:
    """``GET /desk/out-of-memory``: the containers that ran out of memory in their last run."""
    return json_response(engine.memory.kills())
