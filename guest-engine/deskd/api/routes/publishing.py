"""Desk's own handlers: the agent of another computer is asked for the ports that it forwards."""

from __future__ import annotations

from deskd.api.http import NO_CONTENT, Answer, Request, Stream, json_lines
from deskd.domain.container import ApiStruct
from deskd.errors import InvalidArgument
from deskd.services.engine import Engine


class PortAnswer(ApiStruct, frozen=True):
    """Body of ``POST /desk/ports/{id}``; an empty ``refusal`` means that the ports are held."""

    refusal: str = ""


async def questions(engine: Engine, _request: Request) -> Answer:
    """``GET /desk/ports``: one line for each question, and one when it is settled."""
    return Stream(json_lines(engine.publishers.questions()))


async def answer(engine: Engine, request: Request) -> Answer:
    """``POST /desk/ports/{id}``"""
    number = request.path_values["id"]
    if not (number.isascii() and number.isdigit()):
        raise InvalidArgument(f"invalid question {number!r}: it is a number")
    engine.publishers.answer(int(number), (await request.json(PortAnswer)).refusal)
    return NO_CONTENT
