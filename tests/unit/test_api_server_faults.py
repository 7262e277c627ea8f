"""The API server where a handler fails in ways that look like a client's departure."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from deskd.api.http import Answer, Request, json_response
from deskd.api.routing import Router
from deskd.api.server import Server

Handler = Callable[[Any, Request], Awaitable[Answer]]


class OneHandler:
    """A router that leads everything to one handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def find(
        self, _method: str, _path: str, _version: tuple[int, int]
    ) -> tuple[Handler, dict[str, str]]:
        return self._handler, {}


async def serving(handler: Handler, path: Path) -> Server:
    server = Server(None, cast("Router", OneHandler(handler)))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    await server.listen(listener)
    return server


async def ask(path: Path, count: int) -> list[tuple[bytes, dict[str, str]]]:
    """Send requests over one connection; return their status lines and bodies."""
    reader, writer = await asyncio.open_unix_connection(path)
    answers = []
    try:
        for _ in range(count):
            writer.write(b"POST /x HTTP/1.1\r\nHost: desk\r\nContent-Length: 0\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            answers.append((head.split(b"\r\n")[0], json.loads(await reader.readexactly(size))))
    finally:
        writer.close()
    return answers


async def breaks(_engine: Any, _request: Request) -> Answer:
    """Fail with a connection that is not the client's."""
    raise ConnectionResetError(104, "Connection reset by peer")


async def is_given_up(_engine: Any, _request: Request) -> Answer:
    """Wait for something that somebody else gives up."""
    shared = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(shared.cancel)
    await shared
    raise AssertionError


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (breaks, "[Errno 104] Connection reset by peer"),
        (is_given_up, "POST /x was given up: try again"),
    ],
)
def test_a_fault_of_the_engines_own_is_told_and_the_connection_stays(
    handler: Handler, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def use() -> list[tuple[bytes, dict[str, str]]]:
        server = await serving(handler, tmp_path / "s")
        async with asyncio.timeout(20):
            answers = await ask(tmp_path / "s", 2)
        await server.close()
        return answers

    with caplog.at_level(logging.ERROR):
        answers = asyncio.run(use())
    assert answers == [(b"HTTP/1.1 500 Internal Server Error", {"message": message})] * 2
    assert len([record for record in caplog.records if record.exc_info]) == 2


def test_the_engines_end_cuts_a_request_that_takes_too_long(tmp_path: Path) -> None:
    async def never(_engine: Any, _request: Request) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    async def use() -> None:
        server = await serving(never, tmp_path / "s")
        asking = asyncio.create_task(ask(tmp_path / "s", 1))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            await server.close(patience_s=0.1)
            with pytest.raises(asyncio.IncompleteReadError):
                await asking

    asyncio.run(use())


def test_a_client_that_leaves_in_mid_body_is_no_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[bytes] = []
    began = asyncio.Event()

    async def reads(_engine: Any, request: Request) -> Answer:
        async for piece in request.body:
            read.append(piece)
            began.set()
        return json_response({})

    async def use() -> None:
        server = await serving(reads, tmp_path / "s")
        _reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(b"POST /x HTTP/1.1\r\nHost: desk\r\nContent-Length: 9\r\n\r\nhalf")
        await writer.drain()
        await began.wait()
        writer.close()
        async with asyncio.timeout(20):
            await server.close(patience_s=10)

    with caplog.at_level(logging.INFO):
        asyncio.run(use())
    assert read == [b"half"]
    assert not caplog.records
