"""Handlers of containers' input and output: attach, logs, terminal size."""

from __future__ import annotations

from deskd.api.http import Answer, Duplex, Hijack, Request, Response, Stream
from deskd.api.streams import relay, stream_type
from deskd.domain.detach_keys import parse_detach_keys
from deskd.domain.times import parse_moment
from deskd.errors import InvalidArgument
from deskd.services.containers.attaching import AttachOptions
from deskd.services.containers.logs import LogOptions, parse_tail
from deskd.services.engine import Engine


async def logs(engine: Engine, request: Request) -> Answer:
    """``ContainerLogs``"""
    query = request.query
    options = LogOptions(
        stdout=query.flag("stdout"),
        stderr=query.flag("stderr"),
        follow=query.flag("follow"),
        timestamps=query.flag("timestamps"),
        details=query.flag("details"),
        since_ns=parse_moment(query.text("since"), "since"),
        until_ns=parse_moment(query.text("until"), "until"),
        tail=parse_tail(query.text("tail")),
    )
    container = engine.registry.get(request.path_values["id"])
    chunks = engine.logs.read(container.id, options)
    tty = container.record.config.tty
    return Stream(chunks, content_type=stream_type(request.version, tty=tty))


async def attach(engine: Engine, request: Request) -> Answer:
    """``ContainerAttach``"""
    query = request.query
    options = AttachOptions(
        **{name: query.flag(name) for name in ("stdin", "stdout", "stderr", "logs", "stream")}
    )
    container = engine.attaching.check(request.path_values["id"])
    tty = container.record.config.tty
    keys = parse_detach_keys(query.text("detachKeys"))

    async def run(client: Duplex) -> None:
        if options.logs:
            async for chunk in engine.attaching.replay(container, options):
                await client.write(chunk)
        if options.stream:
            await relay(
                client,
                await engine.attaching.stream(container, options),
                stdin=options.stdin and container.record.config.open_stdin,
                detach_keys=keys if tty else None,
                on_detach=lambda: engine.attaching.detached(container),
            )

    return Hijack(run, stream_type(request.version, tty=tty))


def terminal_size(request: Request) -> tuple[int, int]:
    """Read ``h`` and ``w``. Raises ``InvalidArgument``."""
    rows, columns = request.query.integer("h"), request.query.integer("w")
    if rows is None or columns is None or not (0 <= rows < 65536 and 0 <= columns < 65536):
        raise InvalidArgument("a terminal's size needs h and w between 0 and 65535")
    return rows, columns


async def resize(engine: Engine, request: Request) -> Answer:
    """``ContainerResize``"""
    await engine.lifecycle.resize(request.path_values["id"], *terminal_size(request))
    return Response(200, content_type="")
