"""Asking the machine's or a container's own name servers what the engine does not know."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Sequence
from typing import Protocol

from deskd.network.resolver import is_loopback

_DNS_PORT = 53
_ATTEMPT_S = 1.5
"""Resolvers in containers give up after 5 s: two attempts at two servers fit into that."""
_TOTAL_S = 4.5
_ROUNDS = 2
_DEAD_S = 10.0
"""For so long a server that did not answer is asked last."""
_RCODES_OF_TROUBLE = (2, 4, 5)  # SERVFAIL, NOTIMP, REFUSED: another server may know better
_MAX_TCP_BYTES = 65535


class ClientSockets(Protocol):
    """Gives sockets that are not connected, made in a container's network namespace."""

    async def take(self, *, stream: bool) -> socket.socket:
        """Return a UDP or a TCP socket, the caller's from now on. Raises ``OSError`` where the
        container has ended."""

    def close(self) -> None:
        """Give those up that nobody took; idempotent."""


class Forwarder:
    """Sends questions on, as they are but with an ID and a port that cannot be guessed."""

    def __init__(self) -> None:
        self._silent_since: dict[str, float] = {}

    async def ask(
        self,
        packet: bytes,
        servers: Sequence[str],
        inner: ClientSockets | None = None,
        *,
        over_tcp: bool,
    ) -> bytes | None:
        """Return the first good answer, else a bad one; ``None`` where no server answers. Servers
        at loopback addresses are asked with sockets of ``inner``, where that is given."""
        bad: dict[str, bytes] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TOTAL_S):
                for server in self._in_order(servers) * _ROUNDS:
                    if server in bad:
                        continue
                    answer = await self._ask_one(packet, server, inner, over_tcp=over_tcp)
                    if answer is not None and answer[3] & 0xF not in _RCODES_OF_TROUBLE:
                        return answer
                    if answer is not None:
                        bad[server] = answer
        return next(iter(bad.values()), None)

    def _in_order(self, servers: Sequence[str]) -> list[str]:
        recently = time.monotonic() - _DEAD_S
        return sorted(servers, key=lambda server: self._silent_since.get(server, 0.0) > recently)

    async def _ask_one(
        self, packet: bytes, server: str, inner: ClientSockets | None, *, over_tcp: bool
    ) -> bytes | None:
        sent = secrets.token_bytes(2) + packet[2:]
        try:
            async with asyncio.timeout(_ATTEMPT_S):
                client = await _client(server, inner, over_tcp=over_tcp)
                answer = await (_over_tcp if over_tcp else _over_udp)(sent, server, client)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            self._silent_since[server] = time.monotonic()
            return None
        self._silent_since.pop(server, None)
        return packet[:2] + answer[2:]


def _matches(sent: bytes, answer: bytes) -> bool:
    """Whether this is a response to what was sent: same ID, same question."""
    end = _question_end(sent)
    return (
        len(answer) >= 12
        and answer[:2] == sent[:2]
        and bool(answer[2] & 0x80)
        and (answer[4:6] == b"\0\0" or answer[12:end].lower() == sent[12:end].lower())
    )


def _question_end(packet: bytes) -> int:
    position = 12
    while position < len(packet) and packet[position]:
        position += 1 + packet[position]
    return position + 5


class _Question(asyncio.DatagramProtocol):
    def __init__(self, sent: bytes) -> None:
        self._sent = sent
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.answer.done() and _matches(self._sent, data):
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _client(
    server: str, inner: ClientSockets | None, *, over_tcp: bool
) -> socket.socket | None:
    """Return a connected socket to a server in the container; ``None`` for others."""
    if inner is None or not is_loopback(server) or ":" in server:
        return None
    found = await inner.take(stream=over_tcp)
    try:
        await asyncio.get_running_loop().sock_connect(found, (server, _DNS_PORT))
    except BaseException:
        found.close()
        raise
    return found


async def _over_udp(sent: bytes, server: str, client: socket.socket | None) -> bytes:
    loop = asyncio.get_running_loop()
    # A connected socket takes packets from this server only, and has a port of its own.
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: _Question(sent), remote_addr=None if client else (server, _DNS_PORT), sock=client
    )
    try:
        transport.sendto(sent)
        return await protocol.answer
    finally:
        transport.close()


async def _over_tcp(sent: bytes, server: str, client: socket.socket | None) -> bytes:
    limit = _MAX_TCP_BYTES + 2
    reader, writer = await (
        asyncio.open_connection(sock=client, limit=limit)
        if client
        else asyncio.open_connection(server, _DNS_PORT, limit=limit)
    )
    try:
        writer.write(len(sent).to_bytes(2, "big") + sent)
        await writer.drain()
        length = int.from_bytes(await reader.readexactly(2), "big")
        answer = await reader.readexactly(length)
        if not _matches(sent, answer):
            raise ValueError("an answer to another question")
        return answer
    finally:
        writer.close()
