"""The way from containers to the laptop: its address, and connections through its agent.

What ``host-gateway`` and the names of ``LAPTOP_NAMES`` mean is told by ``--host-gateway-ip``: an
address that the machine's own network leads to the laptop (QEMU's user network does so), or
``agent``. Then the address is one that nobody has, the firewall leads TCP connections to it here,
and they go on through a socket on which the machine's sshd listens for the agent.

The agent's side of such a connection: it reads ``tcp PORT\\n`` and answers with one byte, ``+``
where the laptop's loopback has accepted or ``-`` where it has not; then the bytes are the
connection's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from ipaddress import IPv4Address

from deskd.network.firewall import LaptopRules
from deskd.network.relays import Streams, relay

log = logging.getLogger(__name__)

AGENT_ADDRESS = IPv4Address("192.0.0.254")
"""What leads to the laptop through its agent: an address of IETF's own block (RFC 6890, 2.2.2),
which is nobody's, so that no network can have it."""

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h
_SOCKADDR_IN_BYTES = 16
_BACKLOG = 128
_CONNECTIONS = 512
_ANSWER_S = 20.0


class LaptopRelay:
    """Passes connections to ``AGENT_ADDRESS`` on to the agent that came last. Use from one event
    loop."""

    def __init__(self) -> None:
        self._agents: list[str] = []
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def start(self) -> LaptopRules:
        """Listen on a port of the machine's 127.0.0.1; return what the firewall has to do."""
        if self._listener is None:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.bind(("127.0.0.1", 0))
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)
            self._listener = listener
        return LaptopRules(AGENT_ADDRESS, self._listener.getsockname()[1])

    async def close(self) -> None:
        """Listen no more and end all connections; idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def add(self, agent: str) -> None:
        """Send connections to the agent behind this Unix socket."""
        self._agents.append(agent)

    def remove(self, agent: str) -> None:
        """Send no more there; once for each ``add``."""
        self._agents.remove(agent)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:  # it has gone meanwhile, or the next call finds descriptors again
            return
        # Until it is known that somebody answers, closing means "refused".
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        port = _port_at_laptop(client)
        if not port or not self._agents or len(self._connections) >= _CONNECTIONS:
            client.close()
            return
        client.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(client, port))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, client: socket.socket, port: int) -> None:
        async def reach(writers: list[asyncio.StreamWriter]) -> Streams | None:
            found = await self._through_an_agent(port, writers)
            if found is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
            return found

        await relay(client, reach)

    async def _through_an_agent(
        self, port: int, writers: list[asyncio.StreamWriter]
    ) -> Streams | None:
        """Return a connection to a port of the laptop, ``None`` where it is refused there. An agent
        that is just going is no answer: the one before it is asked."""
        for agent in reversed(list(self._agents)):
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_ANSWER_S):
                    reader, writer = await asyncio.open_unix_connection(agent)
                    writers.append(writer)
                    writer.write(f"tcp {port}\n".encode())
                    accepted = await reader.readexactly(1) == b"+"
                return (reader, writer) if accepted else None
        return None


def _port_at_laptop(client: socket.socket) -> int:
    """Return the port that a connection was made to before the firewall led it here; 0 for one that
    came by itself."""
    try:
        given = client.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN_BYTES)
    except OSError:
        return 0
    _family, port, address = struct.unpack_from("!HH4s", given)
    return port if IPv4Address(address) == AGENT_ADDRESS else 0
