"""A connection over which a monitor is spoken to."""

from __future__ import annotations

import json
import socket
from typing import Any


class Control:
    """A control connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = b""
        self.fds: list[int] = []

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, **message: Any) -> bool:
        """Tell the engine; say whether it could be."""
        try:
            self.connection.send(json.dumps(message).encode() + b"\n", socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def receive(self) -> bytes | None:
        """Take what has come, with its descriptors; ``None`` where nothing has, ``b""`` at the
        end."""
        try:
            data, fds, _, _ = socket.recv_fds(self.connection, 4096, 2, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        self.buffer += data
        self.fds += fds
        return data
