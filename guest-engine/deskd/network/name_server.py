"""The name server of user-defined networks: sockets in containers' namespaces, served here.

Each container asks at 127.0.0.11 in its own network namespace; the sockets there were made with
the namespace and are kept by the container's monitor (``deskd.kernel.name_sockets``). The socket
that a question comes from tells who asks, which nothing in a packet could.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from deskd.domain.fault import DnsFault
from deskd.network.ipam import Address
from deskd.network.name_table import NameTable

if TYPE_CHECKING:
    from deskd.network.name_answers import Answers, Forward
    from deskd.network.name_forwarding import ClientSockets, Forwarder

log = logging.getLogger(__name__)

_PACKETS_A_TURN = 32
_PACKET_BYTES = 65535
_QUESTIONS_UNDER_WAY = 128
"""How many questions of one container may wait for other servers; this also ends loops between
servers that send questions to each other."""
_CONNECTIONS = 32
_TCP_IDLE_S = 10.0


class _Served:
    """One container's sockets and what goes on there."""

    def __init__(
        self,
        container_id: str,
        udp: socket.socket,
        tcp: socket.socket,
        servers: Sequence[str],
        inner: ClientSockets,
    ) -> None:
        self.container_id = container_id
        self.udp = udp
        self.tcp = tcp
        self.servers = servers
        self.inner = inner
        self.forwarding = 0
        self.slowed = 0
        self.connections = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something in the background, until ``NameServer.stop``."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class NameServer:
    """Serves all containers of one engine. ``machine_servers`` tells, each time anew, whom to ask
    for a container that has no servers of its own: laptops change networks. ``fault_of`` tells what
    is to go wrong with a container's question, ``laptop`` what address the laptop has."""

    def __init__(
        self,
        machine_servers: Callable[[], Sequence[str]],
        fault_of: Callable[[str, bytes], DnsFault | None] = lambda _container_id, _packet: None,
        laptop: Callable[[], Address | None] = lambda: None,
    ) -> None:
        self.table = NameTable(self._names_changed)
        self._machine_servers = machine_servers
        self._fault_of = fault_of
        self._laptop = laptop
        self._served: dict[str, _Served] = {}
        self._answers: Answers | None = None
        self._forwarder: Forwarder | None = None

    def _names_changed(self) -> None:
        if self._answers is not None:
            self._answers.forget()

    def serve(
        self,
        container_id: str,
        udp: socket.socket,
        tcp: socket.socket,
        servers: Sequence[str],
        inner: ClientSockets,
    ) -> None:
        """Answer what comes to these sockets, which are taken over. ``servers`` are the
        container's own; those at loopback addresses are in the container, and are asked with
        sockets of ``inner``."""
        self.stop(container_id)
        if self._answers is None:
            from deskd.network.name_answers import Answers
            from deskd.network.name_forwarding import Forwarder

            self._answers, self._forwarder = Answers(self.table, self._laptop), Forwarder()
        served = _Served(container_id, udp, tcp, servers, inner)
        self._served[container_id] = served
        loop = asyncio.get_running_loop()
        for one, take in ((udp, self._take_packets), (tcp, self._take_connections)):
            one.setblocking(False)
            loop.add_reader(one.fileno(), take, served)

    def serves(self, container_id: str) -> bool:
        """Tell whether a container's sockets are served."""
        return container_id in self._served

    def stop(self, container_id: str) -> None:
        """Let go of a container's sockets; idempotent. As long as they are held here, its network
        namespace stays."""
        served = self._served.pop(container_id, None)
        if served is None:
            return
        loop = asyncio.get_running_loop()
        for one in (served.udp, served.tcp):
            loop.remove_reader(one.fileno())
            one.close()
        served.inner.close()
        for task in served.tasks:
            task.cancel()

    async def close(self) -> None:
        """Stop serving; the monitors keep the sockets for the next engine."""
        tasks = [task for served in self._served.values() for task in served.tasks]
        for container_id in list(self._served):
            self.stop(container_id)
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- questions ------------------------------------------------------------------------------

    def _take_packets(self, served: _Served) -> None:
        for _ in range(_PACKETS_A_TURN):
            try:
                packet, sender = served.udp.recvfrom(_PACKET_BYTES)
            except OSError:  # nothing more, or word of an answer that did not arrive
                return
            fault = self._fault_of(served.container_id, packet)
            if fault is not None:
                self._answer_faulty_packet(served, packet, sender, fault)
                continue
            answer = self._answer(served, packet, over_tcp=False)
            if isinstance(answer, bytes):
                _send(served.udp, answer, sender)
            elif answer is not None:
                self._forward_packet(served, packet, sender)

    def _answer(self, served: _Served, packet: bytes, *, over_tcp: bool) -> bytes | Forward | None:
        assert self._answers is not None
        return self._answers.answer(served.container_id, packet, over_tcp=over_tcp)

    def _answer_faulty_packet(
        self, served: _Served, packet: bytes, sender: Any, fault: DnsFault
    ) -> None:
        async def answer() -> None:
            found = await self._faulty_answer(served, packet, fault, over_tcp=False)
            if found is not None:
                _send(served.udp, found, sender)

        # A question too many gets no answer, as from a name server that cannot keep up.
        if fault.answer != "none" and served.slowed < _QUESTIONS_UNDER_WAY:
            served.begin(answer())

    async def _faulty_answer(
        self, served: _Served, packet: bytes, fault: DnsFault, *, over_tcp: bool
    ) -> bytes | None:
        """Return what a question gets that meets a fault; ``None``: nothing."""
        if fault.answer == "none":
            return None
        if fault.answer == "nxdomain":
            return _no_such_name(packet)
        if fault.answer == "servfail":
            return _server_failure(packet)
        served.slowed += 1
        try:
            await asyncio.sleep(fault.delay_ms / 1000)
        finally:
            served.slowed -= 1
        answer = self._answer(served, packet, over_tcp=over_tcp)
        if answer is None or isinstance(answer, bytes):
            return answer
        return await self._forward(served, packet, over_tcp=over_tcp)

    def _forward_packet(self, served: _Served, packet: bytes, sender: Any) -> None:
        if served.forwarding >= _QUESTIONS_UNDER_WAY:
            _send(served.udp, _server_failure(packet), sender)
            return

        async def forward() -> None:
            answer = await self._forward(served, packet, over_tcp=False)
            _send(served.udp, answer, sender)

        served.begin(forward())

    async def _forward(self, served: _Served, packet: bytes, *, over_tcp: bool) -> bytes:
        """Ask others. A container whose networks are all internal gets nothing from outside, also
        no names: else they would carry its data there."""
        assert self._forwarder is not None
        answer = None
        if self.table.leads_out(served.container_id):
            served.forwarding += 1
            try:
                inner = served.inner if served.servers else None
                servers = tuple(served.servers) or tuple(self._machine_servers())
                answer = await self._forwarder.ask(packet, servers, inner, over_tcp=over_tcp)
            finally:
                served.forwarding -= 1
        return _server_failure(packet) if answer is None else answer

    # --- over TCP -------------------------------------------------------------------------------

    def _take_connections(self, served: _Served) -> None:
        try:
            connection, _ = served.tcp.accept()
        except OSError:
            return
        if served.connections >= _CONNECTIONS:
            connection.close()
            return
        served.begin(self._converse(served, connection))

    async def _converse(self, served: _Served, connection: socket.socket) -> None:
        served.connections += 1
        writer: asyncio.StreamWriter | None = None
        try:
            connection.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=connection)
            writer.transport.set_write_buffer_limits(0)  # drain waits until all has gone
            while True:
                async with asyncio.timeout(_TCP_IDLE_S):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    packet = await reader.readexactly(length)
                fault = self._fault_of(served.container_id, packet)
                if fault is not None:
                    faulty = await self._faulty_answer(served, packet, fault, over_tcp=True)
                    if faulty is None:
                        continue  # the client waits until one of the two gives up
                    answer: bytes | Forward | None = faulty
                else:
                    answer = self._answer(served, packet, over_tcp=True)
                if answer is None:
                    return
                if not isinstance(answer, bytes):
                    answer = await self._forward(served, packet, over_tcp=True)
                writer.write(len(answer).to_bytes(2, "big") + answer)
                async with asyncio.timeout(_TCP_IDLE_S):
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return
        finally:
            served.connections -= 1
            if writer is None:
                connection.close()
            else:
                writer.transport.abort()


def _server_failure(packet: bytes) -> bytes:
    from deskd.network.name_answers import server_failure

    return server_failure(packet)


def _no_such_name(packet: bytes) -> bytes:
    from deskd.network.name_answers import no_such_name

    return no_such_name(packet)


def _send(udp: socket.socket, answer: bytes, sender: Any) -> None:
    # A full buffer, or a container that ends in this moment: its resolver asks again.
    with contextlib.suppress(OSError):
        udp.sendto(answer, sender)
