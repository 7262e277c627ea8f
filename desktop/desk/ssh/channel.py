"""paramiko's channels without copies: what came is kept and given out in the pieces it came in.

A channel that is relayed keeps nothing: ``forward`` takes the place of its buffer.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

import paramiko
from paramiko.buffered_pipe import PipeTimeout
from paramiko.message import Message

from desk.ssh.packets import SMALL_BYTES, Payload, Payloads

_PACKETS_A_TURN = 16
_OTHER_THAN_DATA_BYTES = 64  # as paramiko allows


class OpenFailure(enum.IntEnum):
    """Why a server refuses a channel (RFC 4254, 5.1); 0 where it gave no reason."""

    NO_ANSWER = 0
    PROHIBITED = 1
    CONNECT_FAILED = 2
    UNKNOWN_TYPE = 3
    RESOURCE_SHORTAGE = 4

    @classmethod
    def _missing_(cls, value: object) -> OpenFailure:
        return cls.NO_ANSWER


class ChannelRefused(Exception):
    """The server did not open a channel; ``text`` is its own explanation."""

    def __init__(self, failure: OpenFailure, text: str) -> None:
        super().__init__(text)
        self.failure = failure
        self.text = text


class Incoming:
    """What a channel has received and nobody has read yet, in place of paramiko's
    ``BufferedPipe``."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pieces: deque[memoryview] = deque()
        self._size = 0
        self._event: Any = None
        self._closed = False

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
        if data:
            with self._changed:
                self._pieces.append(memoryview(data))
                self._size += len(data)
                self._tell()
                self._changed.notify()

    def read_ready(self) -> bool:
        return self._size > 0

    def read(self, size: int, timeout: float | None = None) -> bytes:
        """Return up to ``size`` bytes, none at the end. Raises ``PipeTimeout``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._size and not self._closed:
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
            self._tell()
        return b"".join(taken)

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


class Relayed(Protocol):
    """What relays a channel; it is the channel's ``in_buffer``, too."""

    def see_room(self) -> None:
        """Take note that the server has made room."""


class WireChannel(paramiko.Channel):  # type: ignore[misc]  # paramiko has no types
    """One channel of a ``Wire``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.in_buffer: Any = Incoming()
        self.relay: Relayed | None = None

    def adjust_window(self, message: Message) -> None:
        """Take the room that the server makes."""
        self._window_adjust(message)
        if self.relay is not None:
            self.relay.see_room()

    # --- for the one that relays it, in the thread that reads the connection -------------------

    @property
    def number(self) -> int:
        return int(self.chanid)

    @property
    def most_data_bytes(self) -> int:
        """How many bytes of data one message may have."""
        return int(self.out_max_packet_size) - _OTHER_THAN_DATA_BYTES

    @property
    def room(self) -> int:
        """How much the server takes, in bytes."""
        return int(self.out_window_size)

    @room.setter
    def room(self, size: int) -> None:
        self.out_window_size = size

    def data(self, content: bytes | memoryview) -> Payload:
        return Payload.data(self.remote_chanid, content)

    def make_room(self, size: int) -> Payload | None:
        """Take note of bytes that were passed on; return what makes room for more, once it is
        worth a message."""
        more = self._check_add_window(size)
        return Payload.more_room(self.remote_chanid, more) if more > 0 else None

    def end(self) -> list[Payload]:
        """Return what tells the server that no more data comes."""
        with self.lock:
            messages = [] if self.closed else [self._send_eof()]
        return _payloads(messages)

    def shut(self) -> list[Payload]:
        """Return what closes the channel; nothing where it is closed."""
        with self.lock:
            messages = self._close_internal()
        return _payloads(messages)

    # --- for everybody else ----------------------------------------------------------------

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


def _payloads(messages: Iterable[Message | None]) -> list[Payload]:
    return [Payload(message.asbytes()) for message in messages if message is not None]
