"""One thread that accepts on every listening socket of the agent, and one per connection."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Callable

from desk.agent.watched_sockets import WatchedSockets

_log = logging.getLogger(__name__)

MOST_CONNECTIONS = 512
_STOP_S = 3.0

Handler = Callable[[socket.socket], None]
"""Serves one accepted connection in its own thread and closes it."""


class Acceptor:
    """Listens on any number of sockets; ``add`` and ``remove`` may come from any thread.

    At most ``MOST_CONNECTIONS`` connections are served at once; more are reset.
    """

    def __init__(self) -> None:
        self._listeners: WatchedSockets[Handler] = WatchedSockets()
        self._lock = threading.Lock()
        self._served: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._run, name="acceptor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def connections(self) -> int:
        """How many connections are being served."""
        with self._lock:
            return len(self._served)

    def add(self, listener: socket.socket, handler: Handler) -> None:
        """Accept on ``listener`` (which becomes the acceptor's) and hand connections on."""
        self._listeners.add(listener, handler)

    def remove(self, listener: socket.socket) -> None:
        """Close ``listener``; nothing listens there any more when this returns."""
        self._listeners.remove(listener)

    def close(self) -> None:
        """Close every listener and every connection; idempotent."""
        if self._listeners.stopping:
            return
        self._listeners.stop()
        with self._lock:
            served = list(self._served)
        for connection in served:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=_STOP_S)

    def _run(self) -> None:
        while not self._listeners.stopping:
            self._listeners.settle()
            for listener in self._listeners.readable():
                self._accept(listener)
        self._listeners.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _address = listener.accept()
        except BlockingIOError:
            return  # the client gave up in between
        except OSError as error:
            _log.warning("cannot accept a connection: %s", error)
            return
        handler = self._listeners.purpose(listener)
        with self._lock:
            if handler is not None and len(self._served) < MOST_CONNECTIONS:
                self._served.add(connection)
            else:
                handler = None
        if handler is None:
            _log.warning("more than %d connections at once; one was refused", MOST_CONNECTIONS)
            reset(connection)
            return
        threading.Thread(
            target=self._serve, args=(connection, handler), name="connection", daemon=True
        ).start()

    def _serve(self, connection: socket.socket, handler: Handler) -> None:
        try:
            handler(connection)
        finally:
            connection.close()
            with self._lock:
                self._served.discard(connection)


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other side sees an error and no clean end."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
