"""Desk's own handlers: what was removed and can be brought back."""

from __future__ import annotations

from deskd.api.http import Answer, Request, json_response
from deskd.domain.container import ApiStruct
from deskd.services.engine import Engine


class BinEntries(ApiStruct, frozen=True):
    """Body of ``POST /desk/bin/restore``: which entries."""

    ids: list[str] | None = None


async def contents(engine: Engine, _request: Request) -> Answer:
    """``GET /desk/bin``: all entries, the latest first, and the limits."""
    return json_response(engine.bin.contents())


async def restore(engine: Engine, request: Request) -> Answer:
    """``POST /desk/bin/restore``: bring entries back."""
    wanted = await request.json(BinEntries)
    return json_response(await engine.bin.restore(wanted.ids or []))


async def empty(engine: Engine, request: Request) -> Answer:
    """``DELETE /desk/bin``: delete entries for good, all without an ``id``."""
    freed = await engine.bin.empty(request.query.texts("id"))
    return json_response({"SpaceReclaimed": freed})
