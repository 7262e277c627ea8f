"""Room in sockets. See socket(7) and unix(7)."""

from __future__ import annotations

import contextlib
import socket

_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; Python has no name for it
_STREAM_ROOM_BYTES = 1024 * 1024


def enlarge_send_buffer(connection: socket.socket) -> None:
    """Let a Unix socket hold a megabyte for its reader, above the system's limit where this
    process may: its writer then waits less often. TCP finds its own size."""
    if connection.family == socket.AF_UNIX:
        with contextlib.suppress(PermissionError):
            connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _STREAM_ROOM_BYTES)
