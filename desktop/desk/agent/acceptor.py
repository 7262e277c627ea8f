"""One thread that accepts on every listening socket of the agent, and one per connection."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import struct
import threading
from collections.abc import Callable

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
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)
        self._lock = threading.Lock()
        self._handlers: dict[socket.socket, Handler] = {}
        self._removed: list[socket.socket] = []
        self._served: set[socket.socket] = set()
        self._closing = False
        self._settled = threading.Condition(self._lock)
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
        listener.setblocking(False)
        with self._lock:
            self._handlers[listener] = handler
        self._wake()

    def remove(self, listener: socket.socket) -> None:
        """Close ``listener``; nothing listens there any more when this returns."""
        with self._settled:
            if self._handlers.pop(listener, None) is None:
                return
            self._removed.append(listener)
            self._wake()
            self._settled.wait_for(lambda: listener not in self._removed, timeout=_STOP_S)

    def close(self) -> None:
        """Close every listener and every connection; idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            served = list(self._served)
        self._wake()
        for connection in served:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=_STOP_S)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: the thread is about to wake anyway
            self._wake_writer.send(b"x")

    def _run(self) -> None:
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        registered: set[socket.socket] = set()
        while self._settle(registered):
            for key, _events in self._selector.select():
                if key.fileobj is self._wake_reader:
                    self._wake_reader.recv(4096)
                    continue
                listener = key.fileobj
                assert isinstance(listener, socket.socket)
                self._accept(listener)
        for listener in registered:
            listener.close()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def _settle(self, registered: set[socket.socket]) -> bool:
        """Bring the selector up to date; return whether to go on."""
        with self._settled:
            for listener in self._removed:
                if listener in registered:
                    self._selector.unregister(listener)
                    registered.discard(listener)
                listener.close()
            self._removed.clear()
            for listener in self._handlers:
                if listener not in registered:
                    self._selector.register(listener, selectors.EVENT_READ)
                    registered.add(listener)
            self._settled.notify_all()
            return not self._closing

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _address = listener.accept()
        except BlockingIOError:
            return  # the client gave up in between
        except OSError as error:
            _log.warning("cannot accept a connection: %s", error)
            return
        with self._lock:
            handler = self._handlers.get(listener)
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
