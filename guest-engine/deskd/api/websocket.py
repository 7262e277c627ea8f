"""WebSockets (RFC 6455) for ``attach/ws``; wsproto speaks the protocol.

Output goes out as binary messages without Docker's frames: all of it is one stream.
"""

from __future__ import annotations

from collections.abc import Mapping

from deskd.api.http import Duplex
from deskd.domain.frames import Unframer
from deskd.errors import InvalidArgument, Unsupported

try:
    from wsproto.connection import Connection, ConnectionState, ConnectionType
    from wsproto.events import (
        BytesMessage,
        CloseConnection,
        Message,
        Ping,
    )
    from wsproto.utilities import LocalProtocolError, RemoteProtocolError, generate_accept_token
except ImportError as error:
    raise Unsupported(
        "attaching by WebSocket needs the Python package wsproto beside the engine: install "
        "wsproto (Debian: python3-wsproto)"
    ) from error

NORMAL_CLOSURE, PROTOCOL_ERROR = 1000, 1002


def switching_head(headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the lines that accept a WebSocket. Raises ``InvalidArgument`` where none is asked."""
    key = headers.get("sec-websocket-key", "")
    if headers.get("upgrade", "").lower() != "websocket" or not key.isascii() or not key:
        raise InvalidArgument(
            "this address speaks WebSocket: the request needs the headers Upgrade: websocket and "
            "Sec-WebSocket-Key"
        )
    if headers.get("sec-websocket-version") != "13":
        raise InvalidArgument("only version 13 of WebSocket is spoken here")
    accept = generate_accept_token(key.encode("ascii")).decode("ascii")
    return (
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept}",
    )


class WebSocket:
    """A ``Duplex`` over another one: messages instead of bytes."""

    def __init__(self, client: Duplex, *, framed: bool) -> None:
        """``framed`` output comes in Docker's frames, which are taken away."""
        self._client = client
        self._protocol = Connection(ConnectionType.SERVER)
        self._unframer = Unframer() if framed else None

    async def read(self) -> bytes:
        """Return what the client typed; ``b""`` once it has closed."""
        while self._protocol.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
            typed = bytearray()
            try:
                self._protocol.receive_data(await self._client.read() or None)
                for event in self._protocol.events():
                    if isinstance(event, Message):
                        data = event.data
                        typed += data.encode() if isinstance(data, str) else data
                    elif isinstance(event, Ping | CloseConnection):
                        await self._answer(event)
            except RemoteProtocolError as error:
                await self.close(PROTOCOL_ERROR, str(error))
                return b""
            if typed:
                return bytes(typed)
        return b""

    async def _answer(self, event: Ping | CloseConnection) -> None:
        if isinstance(event, Ping) or self._protocol.state is ConnectionState.REMOTE_CLOSING:
            await self._client.write(self._protocol.send(event.response()))

    async def write(self, data: bytes) -> None:
        """Send output; what comes after the client's close is dropped."""
        for part in [data] if self._unframer is None else self._unframer.feed(data):
            if self._protocol.state is not ConnectionState.OPEN:
                return
            await self._client.write(self._protocol.send(BytesMessage(data=part)))

    async def sink(self) -> None:
        return None

    def gone(self) -> bool:
        return self._protocol.state is not ConnectionState.OPEN or self._client.gone()

    async def close(self, code: int = NORMAL_CLOSURE, reason: str = "") -> None:
        """Say good-bye, unless that has been done."""
        try:
            data = self._protocol.send(CloseConnection(code=code, reason=reason[:100]))
        except LocalProtocolError:
            return
        await self._client.write(data)
