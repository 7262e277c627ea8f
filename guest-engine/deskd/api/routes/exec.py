"""Handlers of execs."""

from __future__ import annotations

from deskd.api.http import Answer, Duplex, Hijack, Request, Response, json_response
from deskd.api.routes.streams import terminal_size
from deskd.api.streams import framed, relay, stream_type, unframed
from deskd.domain.container import ApiStruct
from deskd.domain.detach_keys import parse_detach_keys
from deskd.errors import DeskdError
from deskd.services.engine import Engine
from deskd.services.exec import Exec, ExecConfig


class _StartBody(ApiStruct, frozen=True):
    """``ExecStartConfig``"""

    detach: bool = False
    tty: bool = False
    console_size: tuple[int, int] | None = None


async def create(engine: Engine, request: Request) -> Answer:
    """``ContainerExec``"""
    config = await request.json(ExecConfig)
    parse_detach_keys(config.detach_keys)
    return json_response({"Id": engine.execs.create(request.path_values["id"], config).id}, 201)


async def start(engine: Engine, request: Request) -> Answer:
    """``ExecStart``"""
    body = await request.optional_json(_StartBody, _StartBody())
    found = engine.execs.check_startable(request.path_values["id"])
    if body.detach:
        await engine.execs.start(found.id, attach=False, console_size=body.console_size)
        return Response(200, content_type="")

    async def run(client: Duplex) -> None:
        await _converse(engine, found, body, client)

    return Hijack(run, stream_type(request.version, tty=body.tty))


async def _converse(engine: Engine, found: Exec, body: _StartBody, client: Duplex) -> None:
    # As in Docker: the exec says whether it has a terminal, its start whether the client reads one.
    try:
        stream = await engine.execs.start(found.id, attach=True, console_size=body.console_size)
    except DeskdError as error:
        # HTTP is over: the sentence goes to the user's terminal, as Docker does it.
        text = f"{error}\r\n".encode()
        await client.write(text if body.tty else framed(text))
        return
    if stream is None:  # attach=True always gives one
        raise RuntimeError("an attached exec has no stream")
    detached = False

    def left() -> None:
        nonlocal detached
        detached = True
        engine.execs.detached(found.id)

    keys = parse_detach_keys(found.config.detach_keys) if found.config.tty else None
    convert = None
    if found.config.tty != body.tty:
        convert = framed if found.config.tty else unframed()
    await relay(
        client,
        stream,
        stdin=found.config.attach_stdin,
        detach_keys=keys,
        on_detach=left,
        convert=convert,
    )
    if not detached:
        # Clients ask for the exit code as soon as the connection ends.
        await engine.execs.finished(found.id)


async def resize(engine: Engine, request: Request) -> Answer:
    """``ExecResize``"""
    await engine.execs.resize(request.path_values["id"], *terminal_size(request))
    return Response(200, content_type="")


async def inspect(engine: Engine, request: Request) -> Answer:
    """``ExecInspect``"""
    return json_response(engine.execs.inspect(request.path_values["id"]))
