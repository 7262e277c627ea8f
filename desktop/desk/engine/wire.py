"""HTTP/1.1 for the engine's client: requests, streamed bodies both ways, upgraded connections.

The protocol is h11's, which does no I/O: it writes requests, reads answers and tells when a
connection may serve again. This module moves the bytes, so that the connection itself stays at
hand for what the Engine API does with it: uploads that an answer may overtake, streams that
another thread closes, and connections that an upgrade takes over. Redirects, proxies, cookies and
pipelining are not here, since the Engine API uses none of them.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import h11

from desk.engine.transport import Connection
from desk.errors import EngineUnreachable

_READ_SIZE_BYTES = 64 * 1024
_LONGEST_HEAD_BYTES = 64 * 1024
_STATUS_LINE_START = b"HTTP/1."
_UNWANTED_UPLOAD_GRACE_S = 0.2

Body = bytes | Iterable[bytes]
"""A request's body: bytes as they are, or pieces that are sent in chunks as they come."""


class ProtocolError(EngineUnreachable):
    """What answered does not speak HTTP as the engine does, or broke off in the middle."""


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


class HttpConnection:
    """One connection to the engine; one request at a time.

    ``close`` may come from another thread: it wakes a reader, who then sees the end of the stream.
    """

    def __init__(self, connection: Connection, url: str) -> None:
        self._connection = connection
        self._url = url
        self._protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LONGEST_HEAD_BYTES)
        # The protocol's state is one for both directions, and an upload has a thread of its own.
        # Held for h11's work only, never while bytes move.
        self._lock = threading.Lock()
        self._taken_over = b""
        self.closed = False

    # --- sending ---------------------------------------------------------------------------

    def send(
        self, method: str, target: str, headers: Mapping[str, str], body: Body | None
    ) -> BodySender | None:
        """Send a request. Pieces go out from a thread of their own, which is returned, so that
        an engine that answers early, or while it still reads, is heard at once."""
        fields = list(headers.items())
        if isinstance(body, bytes):
            fields.append(("Content-Length", str(len(body))))
        elif body is not None:
            fields.append(("Transfer-Encoding", "chunked"))
        elif method in ("POST", "PUT"):
            fields.append(("Content-Length", "0"))
        head = h11.Request(method=method, target=target, headers=fields)
        if body is None or isinstance(body, bytes):
            self._send_events(head, h11.Data(data=body or b""), h11.EndOfMessage())
            return None
        self._send_events(head)
        sender = BodySender(self, body)
        sender.start()
        return sender

    def send_piece(self, piece: bytes) -> None:
        """Send a piece of the request's body, of which ``send`` sent the head."""
        self._send_events(h11.Data(data=piece))

    def send_end(self) -> None:
        """End the request's body."""
        self._send_events(h11.EndOfMessage())

    def _send_events(self, *events: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        with self._lock:
            data = b"".join(map(self._protocol.send, events))
        try:
            self.write(data)
        except EngineUnreachable:
            with self._lock:
                self._protocol.send_failed()
            raise

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
            event = self._next_event(in_head=True)
            if isinstance(event, h11.Response | h11.InformationalResponse):
                if event.status_code == 101 or event.status_code >= 200:
                    return event.status_code, Headers(event.headers)
            else:
                self._fetch()
                # h11 waits for a whole head, which what is no HTTP server may never end.
                begin = self._protocol.trailing_data[0][: len(_STATUS_LINE_START)]
                if not _STATUS_LINE_START.startswith(begin):
                    raise self._stranger()

    def read_piece(self) -> bytes:
        """Return some bytes of the response's body as they arrive; ``b""`` at its end."""
        while True:
            event = self._next_event(in_head=False)
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""
            self._fetch()

    def _next_event(self, *, in_head: bool) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            with self._lock:
                return self._protocol.next_event()
        except h11.RemoteProtocolError as error:
            _, ended = self._protocol.trailing_data
            if ended:
                text = f"the engine at {self._url} closed the connection"
                raise ProtocolError(text) from error
            if in_head:
                raise self._stranger() from error
            text = f"the engine at {self._url} sent a malformed answer: {error}"
            raise ProtocolError(
                text, hint="Try again; `desk doctor` looks for the cause."
            ) from error

    def _fetch(self) -> None:
        data = self.receive()
        with self._lock:
            self._protocol.receive_data(data)

    def take_over(self) -> None:
        """Leave HTTP after an answer's head: ``receive`` and ``write`` are the stream now."""
        self._taken_over, _ = self._protocol.trailing_data

    def receive(self) -> bytes:
        """Return some bytes as they come, at most 64 KiB; ``b""`` at the end of the stream."""
        if self._taken_over:
            data, self._taken_over = self._taken_over, b""
            return data
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
        with self._lock:
            states = {self._protocol.our_state, self._protocol.their_state}
            if states != {h11.DONE}:
                return False
            self._protocol.start_next_cycle()
            return True

    def is_stale(self) -> bool:
        """Whether an idle connection was closed by the engine meanwhile."""
        if self.closed or self._protocol.trailing_data[0]:
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

    def _lost(self, error: OSError) -> EngineUnreachable:
        reason = error.strerror or str(error) or type(error).__name__
        return EngineUnreachable(f"lost the connection to the engine at {self._url}: {reason}")

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
        self._http.take_over()
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
