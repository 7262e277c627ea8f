"""Desk's own handler: the disk that holds the engine's data."""

from __future__ import annotations

from deskd.api.http import Answer, Request, json_response
from deskd.services.engine import Engine


async def usage(engine: Engine, request: Request) -> Answer:
    """``GET /desk/disk?settle=1``: how large the disk is, how full, and what is kept for the
    engine."""
    return json_response(await engine.disk_use.usage(settle=request.query.flag("settle")))
