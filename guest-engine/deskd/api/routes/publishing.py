"""Desk's own handlers: the agent of another computer is asked for the ports that it forwards, and
for the folders that it shares."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import field

from deskd.api.http import NO_CONTENT, Answer, Request, Stream, json_lines
from deskd.domain.container import ApiStruct
from deskd.errors import InvalidArgument
from deskd.services.engine import Engine
from deskd.services.folders import FolderAnswer


class PortAnswer(ApiStruct, frozen=True):
    """Body of ``POST /desk/ports/{id}``; an empty ``refusal`` means that the ports are held."""

    refusal: str = ""


async def questions(engine: Engine, request: Request) -> Answer:
    """``GET /desk/ports``: one line for each question, and one when it is settled."""
    return Stream(json_lines(engine.publishers.questions(request.query.path("laptop"))))


async def answer(engine: Engine, request: Request) -> Answer:
    """``POST /desk/ports/{id}``"""
    number = _number(request)
    engine.publishers.answer(number, (await request.json(PortAnswer)).refusal)
    return NO_CONTENT


class FolderAnswerBody(ApiStruct, frozen=True):
    """Body of ``POST /desk/folders/{id}``, see ``deskd.services.folders.FolderAnswer``."""

    places: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""


async def folder_questions(engine: Engine, _request: Request) -> Answer:
    """``GET /desk/folders``: one line for each question."""
    return Stream(json_lines(engine.folders.questions()))


async def folder_answer(engine: Engine, request: Request) -> Answer:
    """``POST /desk/folders/{id}``"""
    number = _number(request)
    body = await request.json(FolderAnswerBody)
    engine.folders.answer(number, FolderAnswer(dict(body.places), dict(body.reasons), body.refusal))
    return NO_CONTENT


def _number(request: Request) -> int:
    number = request.path_values["id"]
    if not (number.isascii() and number.isdigit()):
        raise InvalidArgument(f"invalid question {number!r}: it is a number")
    return int(number)
