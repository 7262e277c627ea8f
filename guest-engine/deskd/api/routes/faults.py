"""Desk's own handlers: network faults. docs/desk-api.json describes them."""

from __future__ import annotations

from deskd.api.http import NO_CONTENT, Answer, Request, json_response
from deskd.domain.fault import FaultRequest
from deskd.services.engine import Engine


async def select(engine: Engine, request: Request) -> Answer:
    """``FaultList``"""
    return json_response(await engine.faults.select(request.query.text("network")))


async def create(engine: Engine, request: Request) -> Answer:
    """``FaultCreate``"""
    return json_response(await engine.faults.add(await request.json(FaultRequest)), 201)


async def inspect(engine: Engine, request: Request) -> Answer:
    """``FaultInspect``"""
    return json_response(await engine.faults.inspect(request.path_values["name"]))


async def heal(engine: Engine, request: Request) -> Answer:
    """``FaultHeal``"""
    await engine.faults.heal(request.path_values["name"])
    return NO_CONTENT


async def heal_all(engine: Engine, request: Request) -> Answer:
    """``FaultHealAll``"""
    healed = await engine.faults.heal_all(request.query.text("network"))
    return json_response({"Healed": healed})
