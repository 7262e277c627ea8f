"""Sockets that one thread waits for, while any other adds and removes them."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Generic, TypeVar

T = TypeVar("T")

_STOP_S = 3.0


class WatchedSockets(Generic[T]):
    """A selector of sockets, each with what it is for.

    ``add``, ``remove``, ``purpose``, ``wake``, ``stop`` and ``len`` may come from any thread;
    ``settle``, ``readable`` and ``close`` from the one that waits.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._settled = threading.Condition()
        self._purposes: dict[socket.socket, T] = {}
        self._removed: list[socket.socket] = []
        self._registered: set[socket.socket] = set()
        self._stopping = False

    def __len__(self) -> int:
        with self._settled:
            return len(self._purposes)

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was called."""
        with self._settled:
            return self._stopping

    def add(self, watched: socket.socket, purpose: T) -> None:
        """Take over a socket."""
        watched.setblocking(False)
        with self._settled:
            self._purposes[watched] = purpose
        self.wake()

    def remove(self, watched: socket.socket) -> None:
        """Close a socket; nothing has its address any more when this returns."""
        with self._settled:
            if self._purposes.pop(watched, None) is None:
                return
            self._removed.append(watched)
            self.wake()
            self._settled.wait_for(lambda: watched not in self._removed, timeout=_STOP_S)

    def purpose(self, watched: socket.socket) -> T | None:
        """Return what a socket is for; ``None`` for one that was removed."""
        with self._settled:
            return self._purposes.get(watched)

    def wake(self) -> None:
        """Let ``readable`` return."""
        with contextlib.suppress(OSError):  # full: the thread is about to wake anyway
            self._wake_writer.send(b"x")

    def stop(self) -> None:
        """Let the waiting thread come to its end; idempotent."""
        with self._settled:
            self._stopping = True
        self.wake()

    def settle(self) -> list[socket.socket]:
        """Take up what was added; close what was removed, and return it."""
        with self._settled:
            removed = self._removed.copy()
            for watched in removed:
                if watched in self._registered:
                    self._selector.unregister(watched)
                    self._registered.discard(watched)
                watched.close()
            self._removed.clear()
            for watched in self._purposes:
                if watched not in self._registered:
                    self._selector.register(watched, selectors.EVENT_READ)
                    self._registered.add(watched)
            self._settled.notify_all()
            return removed

    def readable(self, wait_s: float | None = None) -> list[socket.socket]:
        """Wait for sockets with something to read, or for ``wake``."""
        found = []
        for key, _events in self._selector.select(wait_s):
            watched = key.fileobj
            assert isinstance(watched, socket.socket)
            if watched is self._wake_reader:
                watched.recv(4096)
            else:
                found.append(watched)
        return found

    def close(self) -> None:
        """Close every socket, also what was added or removed in the meantime."""
        self.settle()
        for watched in self._registered:
            watched.close()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()
