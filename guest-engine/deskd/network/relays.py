"""Published TCP ports that address translation cannot lead to the container.

That is where the machine is asked at ::1 (the kernel takes no translated answer to it), and where
the binding's address is of another family than the container's. The engine itself passes the bytes
on then, from the socket that holds the port; while no engine runs, such a port is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from deskd.network.firewall import Publication

_PIECE_BYTES = 1 << 16
_CONNECT_S = 10.0
_CONNECTIONS = 512
"""Of one port; further ones are closed."""


class _Relay:
    def __init__(self, publication: Publication, listener: socket.socket) -> None:
        self.publication = publication
        self.listener = listener
        self.connections: set[asyncio.Task[None]] = set()


class Relays:
    """The relayed ports of one engine. Use from one event loop."""

    def __init__(self) -> None:
        self._relays: dict[Publication, _Relay] = {}

    def start(self, publication: Publication, listener: socket.socket) -> None:
        """Pass on what comes to a listening socket, which stays the caller's: it is not to be
        closed before ``stop``."""
        relay = self._relays[publication] = _Relay(publication, listener)
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, relay)

    def stop(self, publication: Publication) -> None:
        """End a port and its connections; idempotent."""
        relay = self._relays.pop(publication, None)
        if relay is not None:
            asyncio.get_running_loop().remove_reader(relay.listener.fileno())
            for task in relay.connections:
                task.cancel()

    async def close(self) -> None:
        """End all of them."""
        tasks = [task for relay in self._relays.values() for task in relay.connections]
        for publication in list(self._relays):
            self.stop(publication)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, relay: _Relay) -> None:
        try:
            client, _ = relay.listener.accept()
        except OSError:  # it has gone meanwhile, or the next call finds descriptors again
            return
        if len(relay.connections) >= _CONNECTIONS:
            client.close()
            return
        client.setblocking(False)
        task = asyncio.get_running_loop().create_task(_connect(relay.publication, client))
        relay.connections.add(task)
        task.add_done_callback(relay.connections.discard)


async def _connect(publication: Publication, client: socket.socket) -> None:
    address, port = str(publication.container_address), publication.container_port

    async def reach(writers: list[asyncio.StreamWriter]) -> Streams:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_connection(address, port)
        writers.append(writer)
        return reader, writer

    await relay(client, reach)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Reach = Callable[[list[asyncio.StreamWriter]], Awaitable[Streams | None]]
"""Connects to the other side; ``None`` where nobody is there. Writers that it makes go into the
list, and are closed for it."""


async def relay(client: socket.socket, reach: Reach) -> None:
    """Pass on between an accepted connection, which is closed in the end, and the other side."""
    writers: list[asyncio.StreamWriter] = []
    try:
        reader, writer = await asyncio.open_connection(sock=client)
        writers.append(writer)
        found = await reach(writers)
        if found is not None:
            other_reader, other_writer = found
            await asyncio.gather(_pass_on(reader, other_writer), _pass_on(other_reader, writer))
    except (OSError, TimeoutError):
        return  # the client sees its connection end, as it would without a relay
    finally:
        if not writers:
            client.close()
        for one in writers:
            one.transport.abort() if one.is_closing() else one.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until one side ends, and hand its end on."""
    while piece := await reader.read(_PIECE_BYTES):
        writer.write(piece)
        await writer.drain()
    with contextlib.suppress(OSError):  # the other side has closed both directions already
        writer.write_eof()
