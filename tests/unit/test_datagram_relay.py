"""UDP ports that the engine passes on: clients stay apart, and their ways end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Address, IPv6Address

import pytest

from deskd.network import datagram_relay
from deskd.network.datagram_relay import DatagramRelay
from deskd.network.firewall import Publication

Ask = Callable[[socket.socket], Coroutine[None, None, str]]
"""Sends a datagram to the relayed port; returns the port that the server saw it come from."""

Body = Callable[[Ask, Callable[[], socket.socket]], Coroutine[None, None, None]]


def relayed(
    body: Callable[[Ask, Callable[[], socket.socket]], Coroutine[None, None, None]],
) -> None:
    """Run ``body`` with a relay from ::1 to a server at 127.0.0.1, and with a maker of clients."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as holder,
        ):
            server.bind(("127.0.0.1", 0))
            server.setblocking(False)
            holder.bind(("::1", 0))
            address = holder.getsockname()[:2]
            loopback, port = server.getsockname()
            publication = Publication(
                "udp", IPv6Address("::1"), address[1], IPv4Address(loopback), port
            )
            relay = DatagramRelay(publication, holder)
            clients: list[socket.socket] = []

            def client() -> socket.socket:
                made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                made.setblocking(False)
                made.connect(address)
                clients.append(made)
                return made

            async def ask(who: socket.socket) -> str:
                who.send(b"?")
                async with asyncio.timeout(60):
                    _, source = await loop.sock_recvfrom(server, 100)
                    server.sendto(str(source[1]).encode(), source)
                    return (await loop.sock_recv(who, 100)).decode()

            try:
                await body(ask, client)
            finally:
                relay.close()
                for one in clients:
                    one.close()

    asyncio.run(main())


def test_each_client_has_a_way_of_its_own() -> None:
    async def body(ask: Ask, client: Callable[[], socket.socket]) -> None:
        first, second = client(), client()
        ways = [await ask(first), await ask(second)]
        assert ways[0] != ways[1]
        assert [await ask(first), await ask(second)] == ways

    relayed(body)


def test_a_new_client_takes_the_place_of_the_quietest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagram_relay, "_FLOWS", 2)

    async def body(ask: Ask, client: Callable[[], socket.socket]) -> None:
        first, second, third = client(), client(), client()
        kept, lost = await ask(first), await ask(second)
        assert await ask(first) == kept
        await ask(third)
        assert await ask(first) == kept
        assert await ask(second) != lost

    relayed(body)


def test_a_way_ends_after_a_while_of_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagram_relay, "IDLE_S", 0.0)
    monkeypatch.setattr(datagram_relay, "_SWEEP_S", 0.05)

    async def body(ask: Ask, client: Callable[[], socket.socket]) -> None:
        first = client()
        before = await ask(first)
        for _ in range(200):
            await asyncio.sleep(0.1)  # there are sweeps meanwhile
            if await ask(first) != before:
                return
        pytest.fail("the way is still there")

    relayed(body)
