"""HTTP/1.1 for the engine's client: requests, streamed bodies both ways, upgraded connections.

Answers are read by httptools (the parser of Node.js, llhttp), which does no I/O. This module moves
the bytes, so that the connection itself stays at hand for what the Engine API does with it: uploads
that an answer may overtake, streams that another thread closes, and connections that an upgrade
takes over. Redirects, proxies, cookies and pipelining are not here, since the Engine API uses none
of them.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import httptools

from desk.engine.transport import Connection
from desk.errors import EngineUnreachable

_READ_SIZE_BYTES = 64 * 1024
_LONGEST_HEAD_BYTES = 64 * 1024
_STATUS_LINE_START = b"HTTP/1."
_HEAD_END = b"\r\n\r\n"
_UNWANTED_UPLOAD_GRACE_S = 0.2

Body = bytes | Iterable[bytes]
"""A request's body: bytes as they are, or pieces that are sent in chunks as they come."""


class ProtocolError(EngineUnreachable):
    """What answered does not speak HTTP as the engine does, or broke off in the middle."""


class ConnectionLost(ProtocolError):
    """The connection ended before the answer did."""


class Headers:
    """A response's header fields; names are looked up without regard to case."""

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self._fields: dict[str, str] = {}
        for name, value in fields:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            known = self._fields.get(key)
            self._fields[key] = text if known is None else f"{known}, {text}"

    def get(self, name: str, default: str = "") -> str:
        return self._fields.get(name.lower(), default)


def _request_head(method: str, target: str, fields: Mapping[str, str]) -> bytes:
    """Return a request's head (RFC 9112, sections 3 and 5); ``ValueError`` for what would end a
    line of it early."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {text}" for name, text in fields.items())]
    if " " in target or any(mark in line for line in lines for mark in "\r\n\0"):
        raise ValueError(f"no request can be made of {target!r} and its headers")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Message:
    """One answer, as httptools' parser finds it: its head, then its body and how that ends."""

    def __init__(self, method: str) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._method = method
        self._fields: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self.headers = Headers(())
        self.status = 0
        self.complete = False
        self.keeps_connection = False
        self.ends_with_connection = False

    def feed_head(self, data: bytes) -> None:
        """Take a whole head and nothing after it; ``HttpParserError`` if it is none."""
        with contextlib.suppress(httptools.HttpParserUpgrade):
            self._parser.feed_data(data)
        if not self.status:
            raise httptools.HttpParserError("no head")

    def feed(self, data: bytes) -> bytes:
        """Take a part of the body and return what it carries."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if not self.complete:
                raise
        body, self._pieces = b"".join(self._pieces), []
        return body

    def next(self) -> _Message:
        """Return the answer that follows an interim one."""
        return _Message(self._method)

    # --- called by the parser ---

    def on_message_begin(self) -> None:
        if self.complete:  # something follows that nobody asked for
            self.keeps_connection = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self.status:
            raise httptools.HttpParserError("a second answer")
        self.status = self._parser.get_status_code()
        self.headers = Headers(self._fields)
        coding = self.headers.get("transfer-encoding").lower()
        if self._method == "HEAD" or self.status in (204, 304) or self.status < 200:
            self.complete = True
        elif coding:
            self.ends_with_connection = coding.rpartition(",")[2].strip() != "chunked"
        else:
            self.ends_with_connection = not self.headers.get("content-length")
        self.keeps_connection = (
            self._parser.get_http_version() == "1.1"
            and not self.ends_with_connection
            and "close" not in self.headers.get("connection").lower()
        )

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self.complete = True


class HttpConnection:
    """One connection to the engine; one request at a time.

    ``close`` may come from another thread: it wakes a reader, who then sees the end of the stream.
    """

    def __init__(self, connection: Connection, url: str) -> None:
        self._connection = connection
        self._url = url
        self._message = _Message("")
        self._unread = b""  # bytes that came and that nobody looked at yet
        self._asks_upgrade = False
        self._sent_whole = False
        self.closed = False

    # --- sending ---------------------------------------------------------------------------

    def send(
        self, method: str, target: str, headers: Mapping[str, str], body: Body | None
    ) -> BodySender | None:
        """Send a request. Pieces go out from a thread of their own, which is returned, so that
        an engine that answers early, or while it still reads, is heard at once."""
        fields = dict(headers)
        self._asks_upgrade = "Upgrade" in fields
        self._message = _Message(method)
        if isinstance(body, bytes):
            fields["Content-Length"] = str(len(body))
        elif body is not None:
            fields["Transfer-Encoding"] = "chunked"
        elif method in ("POST", "PUT"):
            fields["Content-Length"] = "0"
        head = _request_head(method, target, fields)
        if body is None or isinstance(body, bytes):
            self._sent_whole = True
            self.write(head + (body or b""))
            return None
        self._sent_whole = False
        self.write(head)
        sender = BodySender(self, body)
        sender.start()
        return sender

    def send_piece(self, piece: bytes) -> None:
        """Send a piece, which is not empty, of the body whose request's head ``send`` sent."""
        self.write(b"".join((b"%x\r\n" % len(piece), piece, b"\r\n")))

    def send_end(self) -> None:
        """End the request's body."""
        self.write(b"0\r\n\r\n")
        self._sent_whole = True

    def write(self, data: bytes) -> None:
        """Send bytes as they are, once the connection has been taken over."""
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise self._lost(error) from error

    def shutdown_write(self) -> None:
        """Tell the engine that nothing more will be sent; reading goes on."""
        with contextlib.suppress(OSError):  # the engine may have closed already
            self._connection.shutdown(socket.SHUT_WR)

    # --- receiving -------------------------------------------------------------------------

    def set_timeout(self, timeout_s: float | None) -> None:
        # Closed by another thread, the connection refuses; the next read then tells.
        with contextlib.suppress(OSError):
            self._connection.settimeout(timeout_s)

    def read_head(self) -> tuple[int, Headers]:
        """Return status and headers of the response, past any interim (1xx) one but 101."""
        while True:
            message = self._message
            try:
                message.feed_head(self._take_head())
            except httptools.HttpParserError as error:
                raise self._stranger() from error
            if message.status >= 200 or (message.status == 101 and self._asks_upgrade):
                return message.status, message.headers
            if message.status == 101:
                raise self._stranger()
            self._message = message.next()

    def _take_head(self) -> bytes:
        """Return the next head's bytes, with the empty line that ends it."""
        data = self._unread
        while (end := data.find(_HEAD_END)) < 0:
            # What is no HTTP server may never end a head.
            begin = data[: len(_STATUS_LINE_START)]
            if not _STATUS_LINE_START.startswith(begin) or len(data) > _LONGEST_HEAD_BYTES:
                raise self._stranger()
            more = self._receive()
            if not more:
                raise self._ended()
            data += more
        end += len(_HEAD_END)
        self._unread = data[end:]
        return data[:end]

    def read_piece(self) -> bytes:
        """Return some bytes of the response's body as they arrive; ``b""`` at its end."""
        message = self._message
        while not message.complete:
            data = self.receive()
            if not data and message.ends_with_connection:
                message.complete = True
            elif not data:
                raise self._ended()
            else:
                try:
                    body = message.feed(data)
                except httptools.HttpParserError as error:
                    raise ProtocolError(
                        f"the engine at {self._url} sent a malformed answer: {error}",
                        hint="Try again; `desk doctor` looks for the cause.",
                    ) from error
                if body:
                    return body
        return b""

    def receive(self) -> bytes:
        """Return some bytes as they come, at most 64 KiB but for the first; ``b""`` at the end of
        the stream. After an answer's head that ends HTTP these are the stream's."""
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        return self._receive()

    def _receive(self) -> bytes:
        if self.closed:
            return b""
        try:
            return self._connection.recv(_READ_SIZE_BYTES)
        except TimeoutError as error:
            raise EngineUnreachable(
                f"the engine at {self._url} did not answer in time",
                hint="It may be overloaded, or the machine suspended; try again.",
            ) from error
        except OSError as error:
            if self.closed:
                return b""
            raise self._lost(error) from error

    # --- life ------------------------------------------------------------------------------

    def renew(self) -> bool:
        """Get ready for another request; false when either side's message forbids that."""
        return self._sent_whole and self._message.complete and self._message.keeps_connection

    def is_stale(self) -> bool:
        """Whether an idle connection was closed by the engine meanwhile."""
        if self.closed or self._unread:
            return True
        try:
            if hasattr(select, "poll"):
                poller = select.poll()
                poller.register(self._connection.fileno(), select.POLLIN)
                return bool(poller.poll(0))
            return bool(select.select([self._connection], [], [], 0)[0])
        except (OSError, ValueError):
            return True

    def close(self) -> None:
        self.closed = True
        with contextlib.suppress(OSError):  # not connected any more
            self._connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._connection.close()

    def _lost(self, error: OSError) -> ConnectionLost:
        reason = error.strerror or str(error) or type(error).__name__
        return ConnectionLost(f"lost the connection to the engine at {self._url}: {reason}")

    def _ended(self) -> ConnectionLost:
        return ConnectionLost(f"the engine at {self._url} closed the connection")

    def _stranger(self) -> ProtocolError:
        return ProtocolError(
            f"{self._url} does not answer like an engine",
            hint="Check the address: something else may listen there.",
        )


class BodySender(threading.Thread):
    """Sends the pieces of a body in chunks; what stops it waits in ``error``."""

    def __init__(self, connection: HttpConnection, pieces: Iterable[bytes]) -> None:
        super().__init__(name="engine-upload", daemon=True)
        self._http = connection
        self._pieces = pieces
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for piece in self._pieces:
                if piece:
                    self._http.send_piece(piece)
            self._http.send_end()
        except EngineUnreachable:
            pass  # the engine stopped reading; its answer, which the reader gets, says why
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self.error = error
            self._http.close()


class Response:
    """An answer whose body is read as it comes. Close it, or read it to its end.

    ``on_finished`` gets the connection back when the body has been read and it can be reused.
    """

    def __init__(
        self,
        http: HttpConnection,
        *,
        status: int,
        headers: Headers,
        sender: BodySender | None,
    ) -> None:
        self.status = status
        self.headers = headers
        self._http = http
        self._sender = sender
        self._finished = False
        self.on_finished: Callable[[HttpConnection], None] | None = None

    def take_over(self) -> HttpConnection:
        """Return the connection itself, for an upgraded stream; the caller closes it."""
        self._finished = True
        return self._http

    def set_timeout(self, timeout_s: float | None) -> None:
        """Set how long one read may take; ``None`` waits for ever."""
        self._http.set_timeout(timeout_s)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives; ends early, without an error, once closed."""
        if self._finished:
            return
        try:
            while piece := self._http.read_piece():
                yield piece
        except ProtocolError:
            cause = self._sender.error if self._sender is not None else None
            if cause is not None:
                raise cause from None
            if self._http.closed:
                return
            self.close()
            raise
        except EngineUnreachable:
            self.close()
            raise
        self._finished = True
        self._after_body()

    def _after_body(self) -> None:
        sender = self._sender
        if sender is not None:
            # Answered before all was sent: what remains is not wanted.
            sender.join(_UNWANTED_UPLOAD_GRACE_S)
        uploading = sender is not None and sender.is_alive()
        if self.on_finished is not None and not uploading and self._http.renew():
            self.on_finished(self._http)
        else:
            self.close()

    def read(self) -> bytes:
        """Return the whole body."""
        return b"".join(self.pieces())

    def close(self) -> None:
        """Drop the connection; idempotent, and allowed from another thread."""
        self._http.close()


def exchange(
    http: HttpConnection,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: Body | None,
) -> Response:
    """Send one request and return its response as soon as the headers are here.

    Raises ``EngineUnreachable``; an error of the body's own source comes out as it is.
    """
    sender = http.send(method, target, headers, body)
    try:
        status, fields = http.read_head()
    except EngineUnreachable:
        http.close()
        cause = sender.error if sender is not None else None
        if cause is not None:
            raise cause from None
        raise
    return Response(http, status=status, headers=fields, sender=sender)
