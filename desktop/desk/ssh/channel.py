"""paramiko's channels without copies and, where it can be, without a change of threads.

What came is kept and given out in the pieces it came in. A channel that was given a socket writes
there at once, in the thread that reads the connection, as long as the socket takes all; else the
channel's own reader has the rest.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from typing import Any

import paramiko
from paramiko.buffered_pipe import PipeTimeout
from paramiko.common import cMSG_CHANNEL_WINDOW_ADJUST
from paramiko.message import Message

from desk.ssh.packets import SMALL_BYTES, Payload, Payloads

_PACKETS_A_TURN = 16
_AT_ONCE: int = getattr(socket, "MSG_DONTWAIT", 0)
"""The flag that keeps a system call from waiting; Windows has none."""


class Incoming:
    """What a channel has received and nobody has read yet, in place of paramiko's
    ``BufferedPipe``."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pieces: deque[memoryview] = deque()
        self._size = 0
        self._event: Any = None
        self._closed = False
        self._target: socket.socket | None = None
        self._held = False  # pieces were taken that may not have arrived yet
        self._delivered = 0
        self._told_at = 0

    def deliver_to(self, target: socket.socket, told_at: int) -> None:
        """Write to ``target`` what comes, while it takes all at once and nothing is before it.
        After each ``told_at`` bytes a reader is woken, who has to make new room for them."""
        with self._changed:
            self._target, self._told_at = target, told_at

    def __len__(self) -> int:
        return self._size

    def set_event(self, event: Any) -> None:
        """Have ``event`` set while something can be read, and at the end."""
        with self._changed:
            self._event = event
            self._tell()

    def _tell(self) -> None:
        if self._event is not None:
            if self._size or self._closed:
                self._event.set()
            else:
                self._event.clear()

    def feed(self, data: bytes | memoryview) -> None:
        """Add bytes, which nobody changes afterwards."""
        left = memoryview(data)
        with self._changed:
            if self._target is not None and not self._size and not self._held:
                left = self._deliver(self._target, left)
            if left:
                self._pieces.append(left)
                self._size += len(left)
                self._tell()
            if left or self._delivered > self._told_at:
                self._changed.notify()

    def _deliver(self, target: socket.socket, data: memoryview) -> memoryview:
        """Write what fits; return the rest."""
        try:
            sent = target.send(data, _AT_ONCE)
        except BlockingIOError:
            return data
        except OSError:  # whoever writes the rest finds out by himself
            self._target = None
            return data
        self._delivered += sent
        return data[sent:]

    def read_ready(self) -> bool:
        return self._size > 0

    def read(self, size: int, timeout: float | None = None) -> bytes:
        """Return up to ``size`` bytes, none at the end. Raises ``PipeTimeout``."""
        return b"".join(self.take(size, timeout)[0])

    def take(self, size: int, timeout: float | None = None) -> tuple[list[memoryview], int]:
        """Return up to ``size`` bytes in pieces, and how many were delivered since the last time:
        both nothing at the end. Raises ``PipeTimeout``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._held = False
            while not self._size and not self._closed and self._delivered <= self._told_at:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise PipeTimeout
                self._changed.wait(left)
            taken: list[memoryview] = []
            while self._pieces and size > 0:
                piece = self._pieces.popleft()
                if len(piece) > size:
                    self._pieces.appendleft(piece[size:])
                    piece = piece[:size]
                taken.append(piece)
                size -= len(piece)
                self._size -= len(piece)
            self._held = bool(taken)
            delivered, self._delivered = self._delivered, 0
            self._tell()
            return taken, delivered

    def empty(self) -> bytes:
        """Return everything that is there."""
        with self._changed:
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
            self._tell()
            return data

    def close(self) -> None:
        """Nothing more comes: wake who waits."""
        with self._changed:
            self._closed = True
            self._tell()
            self._changed.notify_all()


class WireChannel(paramiko.Channel):  # type: ignore[misc]  # paramiko has no types
    """One channel of a ``Wire``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.in_buffer = Incoming()
        self.delivered = 0
        """How many bytes ``receive`` has found delivered."""

    def deliver_to(self, target: socket.socket) -> None:
        """Write to a connected socket what comes, as far as it takes it without waiting.
        ``receive`` must be called all the same: it gives out the rest, and makes room for more."""
        if _AT_ONCE:
            self.in_buffer.deliver_to(target, self.in_window_threshold)

    def receive(self, size: int) -> list[memoryview]:
        """Return what has come and was not delivered, up to ``size`` bytes in pieces; nothing at
        the end. Raises as ``recv`` does."""
        while True:
            try:
                pieces, delivered = self.in_buffer.take(size, self.timeout)
            except PipeTimeout:
                raise TimeoutError from None
            self.delivered += delivered
            self._make_room(delivered + sum(map(len, pieces)))
            if pieces or not delivered:
                return pieces

    def _make_room(self, size: int) -> None:
        more = self._check_add_window(size)
        if more > 0:
            message = Message()
            message.add_byte(cMSG_CHANNEL_WINDOW_ADJUST)
            message.add_int(self.remote_chanid)
            message.add_int(more)
            self.transport._send_user_message(message)

    def send(self, data: Any) -> int:
        """Send what the other side has room for, at least a byte and several packets at a time;
        return how much that was: 0 where the channel is shut."""
        left = memoryview(data).cast("B")
        pieces: list[memoryview] = []
        with self.lock:
            if self.closed:
                raise OSError("the channel is closed")
            while left and len(pieces) < _PACKETS_A_TURN and (self.out_window_size or not pieces):
                size = self._wait_for_send_window(len(left))
                if size == 0:
                    break
                pieces.append(left[:size])
                left = left[size:]
        size = sum(map(len, pieces))
        if size <= SMALL_BYTES:  # others may send it, when the caller has gone on already
            pieces = [memoryview(bytes(piece)) for piece in pieces]
        if size:
            # Without the lock: new keys could otherwise not be agreed on.
            self.transport.send_payloads(
                Payloads(Payload.data(self.remote_chanid, piece) for piece in pieces)
            )
        return size
