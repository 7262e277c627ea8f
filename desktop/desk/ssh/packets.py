"""SSH's binary packets for paramiko's transport, with few copies where most bytes are.

Channel data under AES-GCM takes short ways here: it is decrypted out of the buffer that a system
call filled, handed on as a part of what came out, and sent several packets at a time. Everything
else goes paramiko's own way. The private attributes are those of paramiko's ``Packetizer``.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from paramiko.common import MSG_CHANNEL_DATA, MSG_CHANNEL_WINDOW_ADJUST
from paramiko.message import Message
from paramiko.packet import Packetizer
from paramiko.ssh_exception import SSHException

_READ_AHEAD_BYTES = 1 << 19
_LONGEST_PACKET_BYTES = 1 << 18
_LENGTH_BYTES = 4
_BLOCK_BYTES = 16
_LONGEST_PADDING_BYTES = _BLOCK_BYTES + 3
_NOISE_BYTES = 1 << 14
_TAG_BYTES = 16
WINDOW_BYTES = 4 << 20
MAX_PACKET_BYTES = 1 << 17
SMALL_BYTES = 4096
"""Messages up to this size wait for each other, and are nobody else's to change."""

_SEQUENCE_MASK = 0xFFFFFFFF
_COUNTER_MASK = 0xFFFFFFFFFFFFFFFF
_DATA_HEAD = struct.Struct("!BII")  # type, channel, content's length
_CHANNELS = (91, 100)  # the types of the messages of channels (RFC 4250, 4.1.2)
_VECTOR = struct.Struct("!4sQ")  # a fixed part and a counter (RFC 5647, 7.1)
_WINDOW_ADJUST = struct.Struct("!BII")  # type, channel, bytes


def _nothing() -> None:
    """Let the connection itself wait."""


class ReadAhead:
    """The connection as paramiko sees it: one system call reads many packets.

    Only paramiko's reading thread calls ``recv``, ``peek`` and ``skip``.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._view = memoryview(bytearray(_READ_AHEAD_BYTES))
        self._start = self._end = 0
        self.before_reading: Callable[[], None] = _nothing
        """Called where nothing is left of what was read; it may wait for more to come."""
        self.send = connection.send
        self.settimeout = connection.settimeout
        self.close = connection.close
        self.getpeername = connection.getpeername

    def recv(self, size: int) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        if self._start == self._end:
            self._fill()
        data = bytes(self._view[self._start : min(self._end, self._start + size)])
        self._start += len(data)
        return data

    @property
    def here(self) -> int:
        """How many bytes can be had without waiting."""
        return self._end - self._start

    def peek(self, size: int) -> memoryview | None:
        """Return the next ``size`` bytes in one piece, ``None`` at the end. They stay what they are
        until the next call but ``skip``. Raises what the connection raises, and loses nothing."""
        while self._end - self._start < size:
            if self._start + size > len(self._view):
                left = self._end - self._start
                self._view[:left] = self._view[self._start : self._end]
                self._start, self._end = 0, left
            if not self._fill():
                return None
        return self._view[self._start : self._start + size]

    def skip(self, size: int) -> None:
        """Go on behind bytes that were peeked at."""
        self._start += size

    def _fill(self) -> int:
        if self._start == self._end:
            self._start = self._end = 0
        self.before_reading()
        count = self._connection.recv_into(self._view[self._end :])
        self._end += count
        return count

    @property
    def _closed(self) -> bool:
        return self._connection.fileno() < 0


class ReceivedData:
    """A message of channel data, as far as paramiko reads one."""

    def __init__(self, channel: int, content: memoryview, seqno: int) -> None:
        self._channel = channel
        self._content = content
        self.seqno = seqno

    def get_int(self) -> int:
        """Return the channel's number, which comes first."""
        return self._channel

    def get_binary(self) -> memoryview:
        """Return the content, which comes next."""
        return self._content


def _leave(_message: memoryview) -> bool:
    """Leave the message to paramiko's channels."""
    return False


class Payload(NamedTuple):
    """A message to send, in two parts so that a large content need not be copied to its head."""

    head: bytes
    content: bytes | memoryview = b""

    @property
    def size(self) -> int:
        return len(self.head) + len(self.content)

    @classmethod
    def data(cls, channel: int, content: bytes | memoryview) -> Payload:
        """Return a message of channel data, for a channel of the server's number."""
        return cls(_DATA_HEAD.pack(MSG_CHANNEL_DATA, channel, len(content)), content)

    @classmethod
    def more_room(cls, channel: int, size: int) -> Payload:
        """Return a message that lets the server send so many bytes more."""
        return cls(_WINDOW_ADJUST.pack(MSG_CHANNEL_WINDOW_ADJUST, channel, size))


class Payloads(tuple[Payload, ...]):
    """Several messages that go together, where paramiko expects one."""


class DataPacketizer(Packetizer):  # type: ignore[misc]  # paramiko has no types
    """Leaves new keys to the server, and has short ways for channel data.

    WORKAROUND (paramiko's Channel._handle_close and Transport._send_user_message): where the
    client asks for new keys, messages that the server sent before it heard of that can make
    paramiko's reading thread wait for itself, and the connection dies after 30 seconds. A server
    that asks sends nothing in between, which is safe. OpenSSH asks after 2^32 cipher blocks or
    2^31 packets (RFC 4344, 3), well before these limits.
    """

    REKEY_PACKETS = 1 << 40
    REKEY_BYTES = 1 << 60

    _Packetizer__iv_in: bytes
    _Packetizer__iv_out: bytes
    _Packetizer__sequence_number_in: int
    _Packetizer__sequence_number_out: int

    def __init__(self, connection: ReadAhead) -> None:
        super().__init__(connection)
        self._ahead = connection
        self._waiting: deque[Payloads] = deque()
        self._noise = b""  # random bytes for paddings, each of them for one; asked for in advance
        self._noise_used = 0
        self.take: Callable[[memoryview], bool] = _leave
        """Is offered each message of a channel; returns whether it took it."""

    def _inc_iv_counter(self, iv: bytes) -> bytes:
        """Return the vector of the next packet; each packet needs one, both ways."""
        fixed, counter = _VECTOR.unpack(iv)
        return _VECTOR.pack(fixed, (counter + 1) & _COUNTER_MASK)

    # --- receiving -------------------------------------------------------------------------

    def read_message(self) -> tuple[int, Any]:
        """Return the next message's type and the message."""
        if not self._Packetizer__aead_in or self._Packetizer__compress_engine_in is not None:
            return self._read_other_message()
        while True:
            plain = self._next_packet()
            number = self._Packetizer__sequence_number_in
            self._Packetizer__sequence_number_in = (number + 1) & _SEQUENCE_MASK
            message = memoryview(plain)[1 : len(plain) - plain[0]]
            if message[0] == MSG_CHANNEL_DATA:
                _kind, channel, size = _DATA_HEAD.unpack_from(message)
                if size != len(message) - _DATA_HEAD.size:
                    raise SSHException("a message of channel data is not as long as it says")
            if not (_CHANNELS[0] <= message[0] <= _CHANNELS[1] and self.take(message)):
                break
        kind = message[0]
        if kind == MSG_CHANNEL_DATA:
            return kind, ReceivedData(channel, message[_DATA_HEAD.size :], number)
        other = Message(bytes(message[1:]))
        other.seqno = number
        return kind, other

    def _read_other_message(self) -> tuple[int, Any]:
        """Return the next message of a connection whose packets go paramiko's own way."""
        while True:
            kind, message = super().read_message()
            is_channels = _CHANNELS[0] <= kind <= _CHANNELS[1]
            if not (is_channels and self.take(memoryview(bytes((kind,)) + message.asbytes()))):
                return kind, message

    def _next_packet(self) -> bytes:
        """Return a packet without its cipher: padding's length, message, padding."""
        length = int.from_bytes(self._peek(_LENGTH_BYTES), "big")
        if not _BLOCK_BYTES <= length <= _LONGEST_PACKET_BYTES:
            raise SSHException(f"the server sent a packet of {length} bytes")
        whole = _LENGTH_BYTES + length + _TAG_BYTES
        packet = self._peek(whole)
        plain: bytes = self._Packetizer__block_engine_in.decrypt(
            self._Packetizer__iv_in, packet[_LENGTH_BYTES:], packet[:_LENGTH_BYTES]
        )
        self._ahead.skip(whole)
        self._Packetizer__iv_in = self._inc_iv_counter(self._Packetizer__iv_in)
        return plain

    def _peek(self, size: int) -> memoryview:
        ahead = self._ahead
        while True:
            if ahead.here < size and self.handshake_timed_out():
                raise EOFError
            try:
                found = ahead.peek(size)
            except (TimeoutError, BlockingIOError):
                if self.closed:
                    raise EOFError from None
                continue
            except OSError:
                if self.closed:
                    raise EOFError from None
                raise
            if found is None:
                raise EOFError
            return found

    # --- sending ---------------------------------------------------------------------------

    def send_message(self, data: Any) -> None:
        """Send a message of paramiko's or ``Payloads``, behind what waits."""
        with self._Packetizer__write_lock:
            self._send_waiting()
            if isinstance(data, Payloads):
                self._send(data)
            else:
                super().send_message(data)
        self.send_waiting()

    def wait_with(self, payloads: Payloads) -> None:
        """Put messages (which nobody changes any more) behind what waits already.
        ``send_waiting`` must follow."""
        self._waiting.append(payloads)

    def send_waiting(self) -> None:
        """Send what waits, unless another thread is sending: then that one does it, all with one
        system call. Many small messages at once cost much less so."""
        lock = self._Packetizer__write_lock
        # Whoever puts something there and finds the lock taken does so before it is given back,
        # and the queue is looked at again after that.
        while self._waiting and lock.acquire(blocking=False):
            try:
                self._send_waiting()
            finally:
                lock.release()

    def _send_waiting(self) -> None:
        batch: list[Payload] = []
        while self._waiting:
            batch += self._waiting.popleft()
        if batch:
            self._send(batch)

    def _send(self, payloads: Sequence[Payload]) -> None:
        """Send messages; the caller holds the lock for writing."""
        if self._Packetizer__aead_out and self._Packetizer__compress_engine_out is None:
            self._write(self._sealed(payloads))
            return
        for payload in payloads:
            super().send_message(Message(b"".join(payload)))

    def _sealed(self, payloads: Sequence[Payload]) -> bytes:
        """Return packets as they go over the wire; the caller holds the lock for writing."""
        engine, vector = self._Packetizer__block_engine_out, self._Packetizer__iv_out
        parts: list[bytes] = []
        noise, used = self._noise, self._noise_used
        needed = _LONGEST_PADDING_BYTES * len(payloads)
        if len(noise) - used < needed:
            noise = self._noise = os.urandom(max(needed, _NOISE_BYTES))
            used = 0
        for payload in payloads:
            # At least four bytes, to a whole number of blocks (RFC 4253, 6; RFC 5647, 7.2).
            padding = _BLOCK_BYTES - (1 + payload.size) % _BLOCK_BYTES
            padding += _BLOCK_BYTES if padding < 4 else 0
            plain = b"".join((bytes((padding,)), *payload, noise[used : used + padding]))
            used += padding
            length = len(plain).to_bytes(_LENGTH_BYTES, "big")
            parts += (length, engine.encrypt(vector, plain, length))
            vector = self._inc_iv_counter(vector)
        self._noise_used = used
        self._Packetizer__iv_out = vector
        number = self._Packetizer__sequence_number_out + len(payloads)
        self._Packetizer__sequence_number_out = number & _SEQUENCE_MASK
        return b"".join(parts)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._ahead.send(left) :]
            except (TimeoutError, BlockingIOError):
                if self.closed:
                    raise EOFError from None
            except OSError:
                raise EOFError from None
