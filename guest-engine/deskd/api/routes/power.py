"""Desk's own handlers: what changes while the laptop runs on its battery."""

from __future__ import annotations

from deskd.api.http import Answer, Request, json_response
from deskd.services.containers.power import PowerReport
from deskd.services.engine import Engine


async def state(engine: Engine, _request: Request) -> Answer:
    """``GET /desk/power``: what is in force of the policy, and for whom."""
    return json_response(await engine.power.state())


async def tell(engine: Engine, request: Request) -> Answer:
    """``POST /desk/power``: the laptop's power, and the limit that it wants on its battery."""
    return json_response(await engine.power.tell(await request.json(PowerReport)))
