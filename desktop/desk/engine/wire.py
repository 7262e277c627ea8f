"""HTTP/1.1 for the engine's client: requests, streamed bodies both ways, upgraded connections.

Own code instead of ``http.client``, because that costs the command line 35 ms at start and hides
the connection that an upgrade needs. It knows what RFC 9112 asks of a client and no more: no
redirects, proxies, cookies or pipelining, none of which the Engine API uses.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from desk.engine.transport import Connection
from desk.errors import EngineUnreachable

_READ_SIZE = 64 * 1024
_LONGEST_LINE = 64 * 1024
_MOST_HEADERS = 200

Body = bytes | Iterable[bytes]
"""A request's body: bytes as they are, or pieces that are sent in chunks as they come."""


class ProtocolError(EngineUnreachable):
    """What answered does not speak HTTP as the engine does, or broke off in the middle."""


class Headers:
    """A response's header fields; names are looked up without regard to case."""

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self._fields: dict[str, str] = {}
        for name, value in fields:
            key = name.lower()
            known = self._fields.get(key)
            self._fields[key] = value if known is None else f"{known}, {value}"

    def get(self, name: str, default: str = "") -> str:
        return self._fields.get(name.lower(), default)


class HttpConnection:
    """One connection to the engine; one request at a time.

    ``close`` may come from another thread: it wakes a reader, who then sees the end of the stream.
    """

    def __init__(self, connection: Connection, url: str) -> None:
        self._connection = connection
        self._url = url
        self._buffer = bytearray()
        self.closed = False
        self.reusable = True

    # --- sending ---------------------------------------------------------------------------

    def send(
        self, method: str, target: str, headers: Mapping[str, str], body: Body | None
    ) -> threading.Thread | None:
        """Send a request. Pieces go out from a thread of their own, which is returned, so that
        an engine that answers early, or while it still reads, is heard at once."""
        lines = [f"{method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if isinstance(body, bytes):
            lines.append(f"Content-Length: {len(body)}")
        elif body is not None:
            lines.append("Transfer-Encoding: chunked")
        elif method in ("POST", "PUT"):
            lines.append("Content-Length: 0")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        if body is None or isinstance(body, bytes):
            self.write(head + (body or b""))
            return None
        self.write(head)
        sender = _BodySender(self, body)
        sender.start()
        return sender

    def write(self, data: bytes) -> None:
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

    def receive(self) -> bytes:
        """Return some bytes, at most 64 KiB; ``b""`` at the end of the stream."""
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            return data
        if self.closed:
            return b""
        try:
            return self._connection.recv(_READ_SIZE)
        except TimeoutError as error:
            raise EngineUnreachable(
                f"the engine at {self._url} did not answer in time",
                hint="It may be overloaded, or the machine suspended; try again.",
            ) from error
        except OSError as error:
            if self.closed:
                return b""
            raise self._lost(error) from error

    def read_line(self) -> bytes:
        """Return one line without its end."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LONGEST_LINE:
                raise ProtocolError(f"{self._url} does not answer like an engine")
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.removesuffix(b"\r")

    def read_up_to(self, size: int) -> bytes:
        """Return between one and ``size`` bytes."""
        if not self._buffer:
            self._fill()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _fill(self) -> None:
        held = bytes(self._buffer)
        self._buffer.clear()
        data = self.receive()
        self._buffer += held
        if not data:
            raise ProtocolError(f"the engine at {self._url} closed the connection")
        self._buffer += data

    def read_head(self) -> tuple[int, Headers]:
        """Return status and headers of the response, past any interim (1xx) one but 101."""
        while True:
            status_line = self.read_line()
            version, _, rest = status_line.partition(b" ")
            code = rest[:3]
            if not version.startswith(b"HTTP/1.") or len(code) != 3 or not code.isdigit():
                raise ProtocolError(
                    f"{self._url} does not answer like an engine",
                    hint="Check the address: something else may listen there.",
                )
            headers = self._read_headers()
            status = int(code)
            if status == 101 or status >= 200:
                if version == b"HTTP/1.0" or headers.get("connection").lower() == "close":
                    self.reusable = False
                return status, headers

    def _read_headers(self) -> Headers:
        fields: list[tuple[str, str]] = []
        while line := self.read_line():
            name, separator, value = line.partition(b":")
            if not separator or len(fields) >= _MOST_HEADERS:
                raise ProtocolError(f"{self._url} does not answer like an engine")
            fields.append((name.decode("latin-1"), value.decode("latin-1").strip()))
        return Headers(fields)

    # --- life ------------------------------------------------------------------------------

    def is_stale(self) -> bool:
        """Whether an idle connection was closed by the engine meanwhile."""
        if self.closed or self._buffer:
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


class _BodySender(threading.Thread):
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
                    self._http.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self._http.write(b"0\r\n\r\n")
        except EngineUnreachable:
            # The engine stopped reading; its answer, which the reader gets, says why.
            self._http.reusable = False
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
        method: str,
        *,
        status: int,
        headers: Headers,
        sender: threading.Thread | None,
    ) -> None:
        self.status = status
        self.headers = headers
        self._http = http
        self._sender = sender
        self.on_finished: Callable[[HttpConnection], None] | None = None
        self._remaining: int | None = None
        self._chunked = "chunked" in headers.get("transfer-encoding").lower()
        length = headers.get("content-length")
        if method == "HEAD" or status in (101, 204, 304):
            self._chunked = False
            self._remaining = 0
        elif not self._chunked and length.isdecimal():
            self._remaining = int(length)
        elif not self._chunked:
            http.reusable = False  # the body ends with the connection

    @property
    def http(self) -> HttpConnection:
        """The connection itself, for an upgraded stream."""
        return self._http

    def set_timeout(self, timeout_s: float | None) -> None:
        """Set how long one read may take; ``None`` waits for ever."""
        self._http.set_timeout(timeout_s)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives; ends early, without an error, once closed."""
        try:
            if self._chunked:
                yield from self._chunks()
            elif self._remaining is None:
                while data := self._http.receive():
                    yield data
            else:
                while self._remaining:
                    data = self._http.read_up_to(self._remaining)
                    self._remaining -= len(data)
                    yield data
        except ProtocolError:
            cause = getattr(self._sender, "error", None)
            if cause is not None:
                raise cause from None
            if self._http.closed:
                return
            self.close()
            raise
        except EngineUnreachable:
            self.close()
            raise
        self._after_body()

    def _chunks(self) -> Iterator[bytes]:
        while True:
            size_text = self._http.read_line().partition(b";")[0].strip()
            try:
                size = int(size_text, 16)
            except ValueError:
                raise ProtocolError("the engine sent a malformed chunk") from None
            if size == 0:
                while self._http.read_line():  # trailers
                    pass
                return
            while size:
                data = self._http.read_up_to(size)
                size -= len(data)
                yield data
            self._http.read_line()

    def _after_body(self) -> None:
        sender = self._sender
        if sender is not None and sender.is_alive():
            # Answered before all was sent: what remains is not wanted.
            sender.join(0.2)
            if sender.is_alive():
                self._http.reusable = False
        if self._http.reusable and self.on_finished is not None:
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
        cause = getattr(sender, "error", None)
        if cause is not None:
            raise cause from None
        raise
    return Response(http, method, status=status, headers=fields, sender=sender)
