"""The HTTP/1.1 server: asyncio streams and h11, on unix and TCP sockets.

A connection serves one request after the other. Bodies flow in both directions without being
gathered. A handler's work is never cut short by a client that goes away; only the sending of a
``Stream`` is. A ``Hijack`` ends HTTP on its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import select
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import h11

from deskd.api.greeting import COMMON_HEADERS
from deskd.api.http import Answer, Hijack, Query, Request, Response, Stream, json_response
from deskd.api.routing import Router, split_version
from deskd.api.status import REASONS, status_of
from deskd.errors import DeskdError, NotModified, SystemFailure
from deskd.kernel.socket_buffers import enlarge_send_buffer

log = logging.getLogger(__name__)

READ_SIZE_BYTES = 256 * 1024
MAX_HEADER_BYTES = 64 * 1024
LINGER_S = 2.0
DRAIN_LIMIT_BYTES = 1024 * 1024


class ClientGone(Exception):
    """The client closed its connection in the middle of something, or it broke."""


class Server:
    """Serves ``router`` with ``engine`` as the handlers' first argument on given sockets."""

    def __init__(self, engine: Any, router: Router) -> None:
        self._engine = engine
        self._router = router
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self, listener: socket.socket, tls: Any = None) -> None:
        """Accept connections on a bound socket."""
        start = (
            asyncio.start_unix_server if listener.family == socket.AF_UNIX else asyncio.start_server
        )
        server = await start(
            self._accept, sock=listener, ssl=tls, limit=READ_SIZE_BYTES, backlog=1024
        )
        self._servers.append(server)

    async def adopt(self, connection: socket.socket) -> None:
        """Serve a plain connection that was accepted elsewhere."""
        reader = asyncio.StreamReader(limit=READ_SIZE_BYTES)
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader, self._accept), connection
        )

    async def close(self, patience_s: float = 1.0) -> None:
        """Stop accepting, give running requests a moment, then cut the rest."""
        for server in self._servers:
            server.close()
        pending = set(self._connections)
        if pending:
            _, pending = await asyncio.wait(pending, timeout=patience_s)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:  # the coroutine always runs in the task that asyncio made for it
            raise RuntimeError("a connection needs a task")
        self._connections.add(task)
        try:
            await _Connection(self._engine, self._router, reader, writer).serve()
            await _flush(writer)
        except (ConnectionError, ClientGone, TimeoutError):
            log.debug("a client closed its connection early")
        except asyncio.CancelledError:
            log.debug("a connection was cut at the engine's end")
        finally:
            self._connections.discard(task)
            writer.transport.abort()


class _Connection:
    """One client's connection."""

    def __init__(
        self,
        engine: Any,
        router: Router,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._engine = engine
        self._router = router
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)

    async def serve(self) -> None:
        while True:
            try:
                head = await self._next_event()
            except h11.RemoteProtocolError as error:
                await self._refuse(error)
                return
            if not isinstance(head, h11.Request):
                return
            if sum(len(name) + len(value) for name, value in head.headers) > MAX_HEADER_BYTES:
                await self._refuse(h11.RemoteProtocolError("the headers are too long", 431))
                return
            if not head.http_version.startswith(b"1."):
                version = head.http_version.decode("ascii")
                await self._refuse(
                    h11.RemoteProtocolError(f"HTTP/{version} is not spoken here", 505)
                )
                return
            if not await self._serve_request(head):
                await self._linger()
                return
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                await self._linger()
                return
            self._http.start_next_cycle()

    async def _serve_request(self, head: h11.Request) -> bool:
        """Answer one request; return whether the connection can serve another."""
        method = head.method.decode("ascii")
        try:
            if not _has_body(head):
                # h11 tells the end of a body even where there is none. Until it is taken, a
                # streamed answer would wait for the handler to read it, and not see a client leave.
                self._http.next_event()
            answer = await self._answer(head, method)
            if isinstance(answer, Hijack):
                await self._hijack(answer, head)
                return False
            if isinstance(answer, Stream):
                return await self._send_stream(answer, method)
            await self._send_response(answer, method)
            await self._drain_body()
        except h11.RemoteProtocolError as error:
            # The request's body broke the protocol. Where the answer has begun, only cutting the
            # connection tells the client.
            if self._http.our_state is h11.SEND_RESPONSE or self._http.our_state is h11.IDLE:
                await self._refuse(error)
            return False
        return True

    async def _answer(self, head: h11.Request, method: str) -> Answer:
        target = head.target.decode("latin-1")
        path, _, query = target.partition("?")
        try:
            version, path = split_version(path)
            # HEAD routes exist where HEAD means something of its own; else it is a GET.
            handler, values = self._find(method, _unquote(path), version)
            headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers
            }
            request = Request(
                method, path, Query(query), headers, version, self._body(), path_values=values
            )
            answer: Answer = await handler(self._engine, request)
            return answer
        except h11.RemoteProtocolError:
            raise
        except NotModified:
            return Response(304, content_type="")
        except DeskdError as error:
            return _error_response(error)
        except ClientGone:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cut the connection: something that the handler waited for was given up, and
            # the client hears of that as of any fault.
            log.exception("%s %s was given up", method, path)
            return _error_response(SystemFailure(f"{method} {path} was given up: try again"))
        except Exception as error:
            # Errors of connections are among these: those of the client's own are ClientGone.
            log.exception("%s %s failed", method, path)
            return _error_response(error)

    def _find(
        self, method: str, path: str, version: tuple[int, int]
    ) -> tuple[Callable[..., Any], dict[str, str]]:
        if method == "HEAD":
            try:
                return self._router.find("HEAD", path, version)
            except DeskdError:
                return self._router.find("GET", path, version)
        return self._router.find(method, path, version)

    async def _next_event(self) -> Any:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            try:
                data = await self._reader.read(READ_SIZE_BYTES)
            except ConnectionError as error:
                raise ClientGone("the client's connection broke") from error
            self._http.receive_data(data)

    async def _body(self) -> AsyncIterator[bytes]:
        while self._http.their_state is h11.SEND_BODY:
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            event = await self._next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise ClientGone("the client left in the middle of its request")

    async def _drain_body(self) -> None:
        """Take what the handler left of the body, so that the next request can be read."""
        if self._http.they_are_waiting_for_100_continue:
            return
        size = 0
        while self._http.their_state is h11.SEND_BODY:
            event = await self._next_event()
            if isinstance(event, h11.Data):
                size += len(event.data)
            if size > DRAIN_LIMIT_BYTES or isinstance(event, h11.ConnectionClosed):
                return

    async def _send(self, event: Any) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            try:
                await self._writer.drain()
            except ConnectionError as error:
                raise ClientGone("the client's connection broke") from error

    async def _send_response(self, answer: Response, method: str) -> None:
        headers = [*COMMON_HEADERS, *answer.headers]
        if answer.content_type:
            headers.append(("Content-Type", answer.content_type))
        if answer.status not in (204, 304):
            given = {name.lower() for name, _ in answer.headers}
            if "content-length" not in given:
                headers.append(("Content-Length", str(len(answer.body))))
        head = self._http.send(_response(answer.status, tuple(headers)))
        parts = [head or b""]
        if answer.body and method != "HEAD" and answer.status not in (204, 304):
            parts.append(self._http.send(h11.Data(data=answer.body)) or b"")
        parts.append(self._http.send(h11.EndOfMessage()) or b"")
        self._writer.write(b"".join(parts))
        await self._writer.drain()

    async def _send_stream(self, answer: Stream, method: str) -> bool:
        """Send pieces as they come, in chunks; stop when the client leaves."""
        headers = [*COMMON_HEADERS, *answer.headers]
        if answer.content_type:
            headers.append(("Content-Type", answer.content_type))
        sending = asyncio.create_task(self._send_chunks(answer, headers, method))
        watching: asyncio.Task[None] | None = None
        try:
            while not sending.done():
                if watching is None and self._http.their_state is h11.DONE:
                    watching = asyncio.create_task(self._client_left())
                waited = {sending} if watching is None else {sending, watching}
                # While the body is still being read by the handler, nobody else may read.
                await asyncio.wait(
                    waited,
                    timeout=None if watching is not None else 0.05,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if watching is not None and watching.done() and not sending.done():
                    return False
            sending.result()
            return watching is None or not watching.done()
        except (ConnectionError, ClientGone):
            return False
        except Exception:
            log.exception("a streamed answer broke off")
            return False
        finally:
            for task in (sending, watching):
                if task is not None and not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
            close = getattr(answer.chunks, "aclose", None)
            if close is not None:
                await close()

    async def _send_chunks(
        self, answer: Stream, headers: list[tuple[str, str]], method: str
    ) -> None:
        await self._send(_response(answer.status, tuple(headers)))
        if method != "HEAD":
            async for chunk in answer.chunks:
                if chunk:
                    for part in self._http.send_with_data_passthrough(h11.Data(data=chunk)) or ():
                        self._writer.write(part)
                    await self._writer.drain()
        await self._send(h11.EndOfMessage())

    async def _client_left(self) -> None:
        """Return when the client has closed; early bytes of its next request are kept."""
        while data := await self._reader.read(READ_SIZE_BYTES):
            self._http.receive_data(data)

    async def _hijack(self, answer: Hijack, head: h11.Request) -> None:
        async for _ in self._body():
            pass
        leftover, _ = self._http.trailing_data
        upgrade = any(name == b"upgrade" for name, _ in head.headers)
        lines = (
            ["HTTP/1.1 101 UPGRADED", "Connection: Upgrade", "Upgrade: tcp"]
            if upgrade
            else ["HTTP/1.1 200 OK"]
        )
        lines.append(f"Content-Type: {answer.content_type}")
        lines = [*answer.head] or lines
        lines += [f"{name}: {value}" for name, value in COMMON_HEADERS]
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        await self._writer.drain()
        duplex = _RawConnection(self._reader, self._writer, bytes(leftover))
        try:
            await answer.run(duplex)
        except DeskdError as error:
            # HTTP is over, the connection's end is all that can be told here.
            log.debug("a taken-over connection ends: %s", error)

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """Answer 400 (or what h11 suggests) to bytes that are not HTTP, and end."""
        answer = json_response({"message": f"malformed request: {error}"}, error.error_status_hint)
        with contextlib.suppress(h11.LocalProtocolError):
            headers = [("Content-Length", str(len(answer.body))), ("Connection", "close")]
            headers += [("Content-Type", answer.content_type), *COMMON_HEADERS]
            await self._send(_response(answer.status, tuple(headers)))
            await self._send(h11.Data(data=answer.body))
            await self._send(h11.EndOfMessage())
        await self._linger()

    async def _linger(self) -> None:
        """Half-close and take what is still on its way: closing a socket with unread bytes would
        make the peer's next read fail instead of ending."""
        if self._writer.is_closing():
            return
        with contextlib.suppress(OSError, TimeoutError):
            if self._writer.can_write_eof():
                self._writer.write_eof()
            async with asyncio.timeout(LINGER_S):
                while await self._reader.read(READ_SIZE_BYTES):
                    pass


class _RawConnection:
    """The ``Duplex`` of a hijacked connection; ``leftover`` came with the request."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, leftover: bytes
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._leftover = leftover

    async def read(self) -> bytes:
        if self._leftover:
            data, self._leftover = self._leftover, b""
            return data
        return await self._reader.read(READ_SIZE_BYTES)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def sink(self) -> int | None:
        if self._writer.get_extra_info("sslcontext") is not None:
            return None
        await _flush(self._writer)
        # A copy, because asyncio lets nobody else wait for the descriptor of a transport.
        connection = self._writer.get_extra_info("socket")
        enlarge_send_buffer(connection)
        descriptor: int = connection.fileno()
        return os.dup(descriptor)

    def gone(self) -> bool:
        if self._writer.is_closing():
            return True
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket").fileno(), 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


async def _flush(writer: asyncio.StreamWriter) -> None:
    """Wait until the client has been sent everything: what is left at the end would be lost."""
    writer.transport.set_write_buffer_limits(0)
    await writer.drain()


def _unquote(path: str) -> str:
    if "%" not in path:
        return path
    from urllib.parse import unquote

    return unquote(path)


def _error_response(error: Exception) -> Response:
    text = str(error) or type(error).__name__
    # Names of files may have bytes that are no UTF-8, which JSON cannot hold.
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return json_response({"message": shown}, status_of(error))


def _has_body(head: h11.Request) -> bool:
    """Return whether a request announces a body (RFC 9112, 6.3)."""
    for name, value in head.headers:
        if name == b"transfer-encoding" or (name == b"content-length" and int(value) > 0):
            return True
    return False


@functools.lru_cache(256)
def _response(status: int, headers: tuple[tuple[str, str], ...]) -> h11.Response:
    """Return an answer's head. h11 checks each field, which is a tenth of a short request's work;
    most answers have the fields of one before."""
    return h11.Response(status_code=status, headers=list(headers), reason=REASONS.get(status, ""))
