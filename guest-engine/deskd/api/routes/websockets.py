"""Handlers of WebSockets."""

from __future__ import annotations

from deskd.api import websocket
from deskd.api.http import Answer, Duplex, Hijack, Request
from deskd.api.streams import relay
from deskd.domain.detach_keys import parse_detach_keys
from deskd.services.containers.attaching import AttachOptions
from deskd.services.engine import Engine

_STREAMS = ("stdin", "stdout", "stderr")


async def attach(engine: Engine, request: Request) -> Answer:
    """``ContainerAttachWebsocket``"""
    query = request.query
    # Before 1.42 the three parameters meant nothing: a WebSocket had them all.
    chosen = {name: request.version < (1, 42) or query.flag(name) for name in _STREAMS}
    options = AttachOptions(**chosen, logs=query.flag("logs"), stream=query.flag("stream"))
    container = engine.attaching.check(request.path_values["id"])
    config = container.record.config
    keys = parse_detach_keys(query.text("detachKeys"))
    head = websocket.switching_head(request.headers)

    async def run(connection: Duplex) -> None:
        client = websocket.WebSocket(connection, framed=not config.tty)
        if options.logs:
            async for chunk in engine.attaching.replay(container, options):
                await client.write(chunk)
        if options.stream:
            await relay(
                client,
                await engine.attaching.stream(container, options),
                stdin=options.stdin and config.open_stdin,
                detach_keys=keys if config.tty else None,
                on_detach=lambda: engine.attaching.detached(container),
            )
        await client.close()

    return Hijack(run, head=head)
