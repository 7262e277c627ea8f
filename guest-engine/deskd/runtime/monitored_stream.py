"""A client's place at a process's stdio: the engine's end of a socket to the monitor."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket

STREAM_BYTES = 256 * 1024
"""As much of a stream as is taken at once."""
_POUR_BYTES = 1024 * 1024
"""What the pipe between two sockets holds: fewer turns where both sides keep up."""
_SPLICE = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class MonitoredStream:
    """Implements ``AttachStream``; owns ``connection``. ``begun`` has already been read from it."""

    def __init__(self, connection: socket.socket, begun: bytes = b"") -> None:
        connection.setblocking(False)
        self._connection = connection
        self._begun = begun

    async def read(self) -> bytes:
        """Return the next output, ``b""`` at its end."""
        if self._begun:
            data, self._begun = self._begun, b""
            return data
        try:
            loop = asyncio.get_running_loop()
            return await loop.sock_recv(self._connection, STREAM_BYTES)
        except ConnectionResetError:
            return b""

    async def pour(self, sink: int) -> None:
        """Send all output to a non-blocking socket until its end; the bytes stay in the kernel.
        Raises ``ConnectionError`` where the socket's peer has gone."""
        if self._begun:
            await _send_all(sink, self._begun)
            self._begun = b""
        with contextlib.suppress(ConnectionResetError):
            await _splice_all(self._connection.fileno(), sink)

    async def write(self, data: bytes) -> None:
        """Type ``data``; waits while the process does not read. Input after the process's end is
        dropped, as a terminal would."""
        with contextlib.suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self._connection, data)

    async def close_stdin(self) -> None:
        """Say that no more input comes; idempotent."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        """Detach; idempotent."""
        self._connection.close()


async def _splice_all(source: int, sink: int) -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # the limit of pipe-user-pages-soft
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _POUR_BYTES)
        while held := await _splice(source, write_end, _POUR_BYTES, waits_for=source):
            while held:
                held -= await _splice(read_end, sink, held, waits_for=sink)
            await asyncio.sleep(0)  # others want their turn, however fast both sides are
    finally:
        os.close(read_end)
        os.close(write_end)


async def _splice(source: int, sink: int, count: int, *, waits_for: int) -> int:
    """Move up to ``count`` bytes once the socket ``waits_for``, either end, lets some pass."""
    while True:
        try:
            return os.splice(source, sink, count, flags=_SPLICE)
        except BlockingIOError:
            await _ready(waits_for, to_write=waits_for == sink)


async def _send_all(sink: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(sink, view) :]
        except BlockingIOError:
            await _ready(sink, to_write=True)


async def _ready(descriptor: int, *, to_write: bool) -> None:
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if to_write else (loop.add_reader, loop.remove_reader)
    )
    add(descriptor, _wake, woken)
    try:
        await woken
    finally:
        remove(descriptor)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
