"""Channels to TCP addresses that paramiko knows nothing of (RFC 4254, 5 and 7.2).

A published port has many short connections, and paramiko's channel, made for threads that wait,
costs several times what is needed where none does. ``forward`` reads and writes these; nothing here
locks, so all of it belongs to the thread that reads the SSH connection.
"""

from __future__ import annotations

import struct

from desk.ssh.channel import ChannelRefused, OpenFailure
from desk.ssh.packets import MAX_PACKET_BYTES, WINDOW_BYTES, Payload

OPEN, CONFIRMATION, FAILURE, WINDOW_ADJUST = 90, 91, 92, 93
DATA, EXTENDED_DATA, EOF, CLOSE, REQUEST, REQUEST_FAILURE = 94, 95, 96, 97, 98, 100

FIRST_NUMBER = 1 << 24
"""paramiko's own channels have smaller numbers (``Transport._next_channel``)."""
_NUMBERS = 1 << 32

_ONE = struct.Struct("!I")
_HEAD = struct.Struct("!BI")  # type, channel
_SHAPE = struct.Struct("!III")  # number, window, largest packet
_LEAST_ROOM_BYTES = WINDOW_BYTES // 10
_TYPE = b"direct-tcpip"
_FROM = b"127.0.0.1"


def next_number(number: int) -> int:
    """Return the channel number after this one."""
    return number + 1 if number + 1 < _NUMBERS else FIRST_NUMBER


class DirectChannel:
    """One channel, from the message that asks for it to the end of both directions."""

    __slots__ = ("_made", "_remote", "closed", "eof_received", "eof_sent", "most_data_bytes",
                 "number", "room")  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.room = 0  # how much the server takes, in bytes
        self.most_data_bytes = 0
        self.closed = self.eof_received = self.eof_sent = False
        self._remote = 0
        self._made = 0  # bytes that were read, and for which the server has got no room yet

    def ask(self, host: str, port: int) -> Payload:
        """Return the message that asks for the channel."""
        target = host.encode()
        return Payload(
            b"".join(
                (
                    bytes((OPEN,)),
                    _string(_TYPE),
                    _SHAPE.pack(self.number, WINDOW_BYTES, MAX_PACKET_BYTES),
                    _string(target),
                    _ONE.pack(port),
                    _string(_FROM),
                    _ONE.pack(0),
                )
            )
        )

    def confirmed(self, body: memoryview) -> None:
        """Take the server's answer that the channel stands; ``body`` follows our number."""
        self._remote, self.room, largest = _SHAPE.unpack_from(body)
        self.most_data_bytes = max(1, min(largest, MAX_PACKET_BYTES))

    def data(self, content: bytes | memoryview) -> Payload:
        return Payload.data(self._remote, content)

    def take_room(self, body: memoryview) -> None:
        """Take the room that the server makes."""
        self.room += _ONE.unpack_from(body)[0]

    def make_room(self, size: int) -> Payload | None:
        """Take note of bytes that were passed on; return what makes room for more, once it is
        worth a message."""
        self._made += size
        if self._made <= _LEAST_ROOM_BYTES or self.eof_received or self.closed:
            return None
        size, self._made = self._made, 0
        return Payload.more_room(self._remote, size)

    def end(self) -> list[Payload]:
        """Return what tells the server that no more data comes."""
        if self.eof_sent or self.closed:
            return []
        self.eof_sent = True
        return [Payload(_HEAD.pack(EOF, self._remote))]

    def shut(self) -> list[Payload]:
        """Return what closes the channel; nothing where it is closed."""
        if self.closed:
            return []
        payloads = [*self.end(), Payload(_HEAD.pack(CLOSE, self._remote))]
        self.closed = True
        return payloads

    def decline(self, body: memoryview) -> list[Payload]:
        """Return the answer to a request on the channel, of which we know none."""
        length = _ONE.unpack_from(body)[0]
        wants_reply = body[_ONE.size + length]
        return [Payload(_HEAD.pack(REQUEST_FAILURE, self._remote))] if wants_reply else []


def refusal(body: memoryview) -> ChannelRefused:
    """Return what the server says of a channel that it does not open."""
    reason, length = struct.unpack_from("!II", body)
    text = bytes(body[8 : 8 + length]).decode("utf-8", "replace")
    return ChannelRefused(OpenFailure(reason), text)


def _string(value: bytes) -> bytes:
    return _ONE.pack(len(value)) + value
