"""One thread that accepts on every listening socket of the agent."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import sys
import threading
from collections.abc import Callable

from desk.agent.watched_sockets import WatchedSockets

_log = logging.getLogger(__name__)

# Windows' select(2) takes 512 sockets in all (FD_SETSIZE, as Python is built).
MOST_CONNECTIONS = 448 if sys.platform == "win32" else 512
_STOP_S = 3.0

_ACCEPTED_A_TURN = 32

Handler = Callable[[socket.socket, Callable[[], None]], None]
"""Begins to serve an accepted connection, without waiting; closes it in the end, and calls what it
was given when it has."""


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
                for _ in range(_ACCEPTED_A_TURN):
                    if not self._accept(listener):
                        break
        self._listeners.close()

    def _accept(self, listener: socket.socket) -> bool:
        """Accept a connection; return whether there may be another one."""
        try:
            connection, _address = listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            _log.warning("cannot accept a connection: %s", error)
            return False
        handler = self._listeners.purpose(listener)
        with self._lock:
            if handler is not None and len(self._served) < MOST_CONNECTIONS:
                self._served.add(connection)
            else:
                handler = None
        if handler is None:
            _log.warning("more than %d connections at once; one was refused", MOST_CONNECTIONS)
            reset(connection)
        else:
            handler(connection, lambda: self._forget(connection))
        return True

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._served.discard(connection)


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other side sees an error and no clean end."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
