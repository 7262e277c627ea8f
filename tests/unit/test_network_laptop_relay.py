"""Connections that go on to the laptop, with an agent on a real Unix socket."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from deskd.network import laptop
from deskd.network.laptop import LaptopRelay

PORT = 4321
REPLY = b"x" * (2 << 20)
"""More than sockets and transports hold."""

Agent = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def led_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the firewall, which tells the port that was meant; and let the kernel hold
    little, so that what a client has not read yet is in the relay."""

    def port(client: socket.socket) -> int:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        return PORT

    monkeypatch.setattr(laptop, "_port_at_laptop", port)


async def connected(tmp_path: Path, agent: Agent, client: Callable[[int], bytes]) -> bytes:
    """Return what a client, in a thread with the relay's port, came to."""
    server = await asyncio.start_unix_server(agent, tmp_path / "agent.sock")
    relay = LaptopRelay()
    relay.add(str(tmp_path / "agent.sock"))
    rules = relay.start()
    try:
        async with asyncio.timeout(60):
            return await asyncio.to_thread(client, rules.relay_port)
    finally:
        await relay.close()
        server.close()


def test_a_slow_reader_that_said_its_last_word_gets_the_whole_answer(tmp_path: Path) -> None:
    async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == f"tcp {PORT}\n".encode()
        writer.write(b"+")
        assert await reader.read() == b"question"
        writer.write(REPLY)
        await writer.drain()
        writer.close()

    def client(port: int) -> bytes:
        with socket.socket() as one:
            one.settimeout(30)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            one.connect(("127.0.0.1", port))
            one.sendall(b"question")
            one.shutdown(socket.SHUT_WR)
            pieces = []
            while piece := one.recv(1 << 15):
                pieces.append(piece)
                time.sleep(0.002)
            return b"".join(pieces)

    assert asyncio.run(connected(tmp_path, agent, client)) == REPLY


def test_a_port_that_nobody_has_is_refused(tmp_path: Path) -> None:
    async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"-")
        writer.close()

    def client(port: int) -> bytes:
        # The end may come before the client knows of the beginning.
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", port), timeout=30) as one,
        ):
            one.recv(1)
        return b"refused"

    assert asyncio.run(connected(tmp_path, agent, client)) == b"refused"
