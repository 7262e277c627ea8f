"""Attach clients as the monitor serves them: output in Docker's frames, input to the program.

A frame is 8 bytes (stream number, three zeros, length as a big-endian 32-bit number) and the
data; a terminal's output goes as it is. See "Stream format" of ``ContainerAttach`` (API v1.47).
"""

from __future__ import annotations

import socket
import struct

from deskd.kernel.socket_buffers import enlarge_send_buffer

STDOUT = 1
STDERR = 2
BUFFER_LIMIT_BYTES = 1024 * 1024
"""What is kept for one slow client; beyond it the program's output waits, as dockerd has it."""

_INPUT_BYTES = 262144
_HEADER = struct.Struct(">BxxxI")
HEADER_BYTES = _HEADER.size


def write_header(packet: memoryview, stream: int, size_bytes: int) -> None:
    """Make a frame of a packet whose data come after ``HEADER_BYTES``."""
    _HEADER.pack_into(packet, 0, stream, size_bytes)


class AttachClient:
    """One connected client."""

    def __init__(
        self, connection: socket.socket, *, stdin: bool, stdout: bool, stderr: bool
    ) -> None:
        connection.setblocking(False)
        enlarge_send_buffer(connection)
        self.connection = connection
        self.stdin = stdin
        self.streams = frozenset(
            number for number, wanted in ((STDOUT, stdout), (STDERR, stderr)) if wanted
        )
        self.pending = bytearray()
        self.alive = True

    def fileno(self) -> int:
        return self.connection.fileno()

    @property
    def full(self) -> bool:
        """Say whether the client has fallen too far behind."""
        return self.alive and len(self.pending) > BUFFER_LIMIT_BYTES

    def send(self, data: memoryview) -> None:
        """Queue data and send what goes."""
        if not self.alive:
            return
        if self.pending:
            self.pending += data
            return
        sent = self._try(data)
        if sent < len(data):
            self.pending += data[sent:]

    def flush(self) -> None:
        """Send what is queued, as far as it goes."""
        if self.pending and self.alive:
            sent = self._try(self.pending)
            del self.pending[:sent]

    def _try(self, data: memoryview | bytearray) -> int:
        try:
            return self.connection.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.alive = False
            self.pending.clear()
            return 0

    def receive(self) -> bytes | None:
        """Return what the client typed, ``b""`` at its end, ``None`` where nothing is there."""
        try:
            return self.connection.recv(_INPUT_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            self.alive = False
            return b""

    def close(self) -> None:
        """Hang up."""
        self.alive = False
        self.connection.close()
