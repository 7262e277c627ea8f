"""Answers ``/_ping`` and ``/version`` from a thread while the rest of the engine is made.

    client            Front (thread)                     Server (event loop)
      | /_ping ------->| answers
      | <--------------|
      | /containers -->| reads nothing of it, keeps the connection
      |                |--- hand_over(): all connections ->| reads the request, answers
      | <--------------------------------------------------|

Requests are looked at and only taken off a connection when they are answered here, so the server
gets every other connection as if it had accepted it itself. Imports next to nothing.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Sequence

from deskd.api.greeting import early_answer, refusal

LOOK_BYTES = 8192
"""A longer request is none that is answered here."""


class Front:
    """Serves listeners from ``start`` until ``hand_over`` or ``close``; owns what it accepts."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._open: dict[int, socket.socket] = {}
        self._kept: list[socket.socket] = []
        self._poll = select.poll()
        self._awake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="front", daemon=True)

    def start(self) -> None:
        """Begin to accept. Other threads must leave the listeners alone until ``hand_over``."""
        for descriptor in (*self._listeners, self._awake.fileno()):
            self._poll.register(descriptor, select.POLLIN)
        for listener in self._listeners.values():
            listener.setblocking(False)
        self._thread.start()

    def hand_over(self) -> list[socket.socket]:
        """Stop, and return the connections that wait for an answer or for their next request."""
        if self._thread.is_alive():
            self._waker.send(b"x")
            self._thread.join()
        self._awake.close()
        self._waker.close()
        connections = [*self._kept, *self._open.values()]
        self._kept, self._open = [], {}
        return connections

    def close(self) -> None:
        """Stop, refuse what waits, and close; does nothing after ``hand_over``."""
        if self._waker.fileno() < 0:
            return
        waiting = set(self._kept)
        for connection in self.hand_over():
            with connection, contextlib.suppress(OSError):
                if connection in waiting:
                    connection.send(refusal())
                    # What is left unread would make the client's next read fail.
                    while connection.recv(LOOK_BYTES):
                        pass

    def _serve(self) -> None:
        while True:
            for descriptor, _events in self._poll.poll():
                if descriptor in self._open:
                    self._look(self._open[descriptor])
                elif descriptor in self._listeners:
                    self._accept(self._listeners[descriptor])
                elif descriptor == self._awake.fileno():
                    return

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _address = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # No descriptors left, for one: clients wait in the backlog for the engine.
            for descriptor in self._listeners:
                self._poll.unregister(descriptor)
            self._listeners = {}
            return
        connection.setblocking(False)
        self._open[connection.fileno()] = connection
        self._poll.register(connection.fileno(), select.POLLIN)

    def _look(self, connection: socket.socket) -> None:
        try:
            seen = connection.recv(LOOK_BYTES, socket.MSG_PEEK)
            found = early_answer(seen) if seen else None
            if found is None:
                self._let_go(connection, keep=bool(seen))
                return
            answer, stays = found
            connection.recv(len(seen))
            whole = connection.send(answer) == len(answer)
        except OSError:
            self._let_go(connection, keep=False)
            return
        if not (stays and whole):
            self._let_go(connection, keep=False)

    def _let_go(self, connection: socket.socket, *, keep: bool) -> None:
        self._poll.unregister(connection.fileno())
        del self._open[connection.fileno()]
        if keep:
            self._kept.append(connection)
        else:
            connection.close()
