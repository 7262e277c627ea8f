"""Published ports that address translation cannot lead to the container.

That is where the machine is asked at ::1 (the kernel takes no translated answer to it), and where
the binding's address is of another family than the container's. The engine itself passes bytes and
datagrams on then, from the socket that holds the port; while no engine runs, such a port is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from deskd.network.datagram_relay import DatagramRelay
from deskd.network.firewall import Publication

_PIECE_BYTES = 1 << 16
_CONNECT_S = 10.0
_CONNECTIONS = 512
"""Of one port; further ones are closed."""


class _StreamRelay:
    """Passes the connections of one TCP port on."""

    def __init__(self, publication: Publication, listener: socket.socket) -> None:
        self._publication = publication
        self._listener = listener
        self.connections: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """End the port and its connections."""
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        for task in self.connections:
            task.cancel()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it has gone meanwhile, or the next call finds descriptors again
            return
        if len(self.connections) >= _CONNECTIONS:
            client.close()
            return
        client.setblocking(False)
        task = asyncio.get_running_loop().create_task(_connect(self._publication, client))
        self.connections.add(task)
        task.add_done_callback(self.connections.discard)


class Relays:
    """The relayed ports of one engine. Use from one event loop."""

    def __init__(self) -> None:
        self._relays: dict[Publication, _StreamRelay | DatagramRelay] = {}

    def start(self, publication: Publication, holder: socket.socket) -> None:
        """Pass on what comes to the socket that holds a port (TCP: that listens). It stays the
        caller's: it is not to be closed before ``stop``."""
        kind = DatagramRelay if publication.protocol == "udp" else _StreamRelay
        self._relays[publication] = kind(publication, holder)

    def stop(self, publication: Publication) -> None:
        """End a port and its connections; idempotent."""
        relay = self._relays.pop(publication, None)
        if relay is not None:
            relay.close()

    async def close(self) -> None:
        """End all of them."""
        streams = [one for one in self._relays.values() if isinstance(one, _StreamRelay)]
        tasks = [task for one in streams for task in one.connections]
        for publication in list(self._relays):
            self.stop(publication)
        await asyncio.gather(*tasks, return_exceptions=True)


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
