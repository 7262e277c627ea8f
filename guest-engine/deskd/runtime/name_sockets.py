"""Fetching the sockets of a container's name server from the monitor that keeps them.

While no engine runs, questions wait in these sockets; the next engine answers them.
"""

from __future__ import annotations

import asyncio
import socket

from deskd.runtime.socket_names import short_name

_ANSWER_TIMEOUT_S = 10.0

NameSockets = tuple[socket.socket, socket.socket]
"""The UDP socket and the listening TCP socket, inside the container's network namespace."""


async def connect(path: str) -> socket.socket:
    """Connect to a monitor. Raises ``OSError`` where it has gone."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        with short_name(path) as name:
            await asyncio.get_running_loop().sock_connect(connection, name)
    except BaseException:
        connection.close()
        raise
    return connection


async def fetch(path: str) -> NameSockets | None:
    """Ask the monitor for the sockets; ``None`` where the container has none.

    Raises ``OSError`` where the monitor has gone.
    """
    loop = asyncio.get_running_loop()
    connection = await connect(path)
    try:
        await loop.sock_sendall(connection, b'{"op": "names"}\n')
        await asyncio.wait_for(_readable(connection), _ANSWER_TIMEOUT_S)
        _, fds, _, _ = socket.recv_fds(connection, 4096, 2, socket.MSG_CMSG_CLOEXEC)
    finally:
        connection.close()
    sockets = [socket.socket(fileno=fd) for fd in fds]
    if len(sockets) != 2:
        for one in sockets:
            one.close()
        return None
    return sockets[0], sockets[1]


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection.fileno(), _set, waiting)
    try:
        await waiting
    finally:
        loop.remove_reader(connection.fileno())


def _set(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
