"""Desk's own handler: the check of the store."""

from __future__ import annotations

from deskd.api.http import Answer, Request, Stream
from deskd.services.engine import Engine


async def check(engine: Engine, request: Request) -> Answer:
    """``POST /desk/store/check?repair=1&deep=1``: a line of JSON for each thing that is wrong."""
    query = request.query
    return Stream(engine.store_checks.lines(repair=query.flag("repair"), deep=query.flag("deep")))
