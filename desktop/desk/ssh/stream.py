"""A channel of an SSH connection with a socket's manners."""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Iterator
from typing import Any

import paramiko

from desk.ssh.channel import WireChannel

_STDERR_READ_BYTES = 1 << 16

# What paramiko raises from any call that sends when the connection below is gone.
_LOST = (EOFError, paramiko.SSHException)


def _reset(error: BaseException) -> ConnectionResetError:
    return ConnectionResetError(f"the SSH connection is lost: {error}".rstrip(": "))


class ChannelStream:
    """Wraps one open channel; the holder closes it.

    It behaves as a blocking stream socket: ``recv`` returns ``b""`` at the other side's end, and
    writing to a closed stream raises ``BrokenPipeError`` (where paramiko reports zero bytes sent,
    for ever).
    """

    def __init__(self, channel: WireChannel, *, by_command: bool = True) -> None:
        self._channel = channel
        self.by_command = by_command
        """Whether a command is at the other end, which says why it ended; else it is a socket."""

    @property
    def channel(self) -> WireChannel:
        """The channel, for whoever takes over to relay it."""
        return self._channel

    # --- a socket's calls ------------------------------------------------------------------

    def recv(self, size: int, /) -> bytes:
        try:
            data: bytes = self._channel.recv(size)
        except _LOST as error:
            raise _reset(error) from error
        return data

    def recv_exactly(self, size: int) -> bytes:
        """Return ``size`` bytes, or fewer where the other side ends before."""
        data = b""
        while len(data) < size and (piece := self.recv(size - len(data))):
            data += piece
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(view))
        view[: len(data)] = data
        return len(data)

    def send(self, data: Any, /) -> int:
        try:
            sent: int = self._channel.send(data)
        except _LOST as error:
            raise _reset(error) from error
        if sent == 0 and len(data) > 0:
            raise BrokenPipeError("the SSH channel is closed")
        return sent

    def sendall(self, data: Any, /) -> None:
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]

    def shutdown(self, how: int, /) -> None:
        """Shut down as a socket does; the other side reads the end of our data.

        Unlike paramiko's, shutting down reading wakes a reader.
        """
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            with contextlib.suppress(*_LOST):  # a lost connection is shut down as it is
                self._channel.shutdown_write()
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self._channel.shutdown_read()
            self._channel.in_buffer.close()
            self._channel.in_stderr_buffer.close()

    def settimeout(self, timeout_s: float | None, /) -> None:
        self._channel.settimeout(timeout_s)

    def fileno(self) -> int:
        """Return a descriptor that polls as readable when ``recv`` would not block."""
        number: int = self._channel.fileno()
        return number

    def makefile(self, mode: str = "rb", buffering: int = -1) -> io.BufferedIOBase:
        """Return a buffered binary file; closing it leaves the stream open."""
        size = io.DEFAULT_BUFFER_SIZE if buffering <= 0 else buffering
        raw = _StreamFile(self)
        if mode == "rb":
            return io.BufferedReader(raw, size)
        if mode == "wb":
            return io.BufferedWriter(raw, size)
        raise ValueError(f"mode {mode!r} is neither 'rb' nor 'wb'")

    def close(self) -> None:
        """Close both directions and wake whoever waits on them; idempotent."""
        with contextlib.suppress(*_LOST):
            self._channel.close()

    # --- a command's calls -----------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether either side has closed the whole channel."""
        return bool(self._channel.closed)

    @property
    def at_rest(self) -> bool:
        """Whether the channel is open both ways and the other side has said nothing yet."""
        channel = self._channel
        return not (channel.closed or channel.eof_received or channel.recv_ready())

    def iter_stderr(self) -> Iterator[bytes]:
        """Yield what the command writes to standard error until it ends."""
        with contextlib.suppress(*_LOST):
            while piece := self._channel.recv_stderr(_STDERR_READ_BYTES):
                yield piece

    def wait_exit_code(self) -> int:
        """Wait until the channel's command ended, or the channel was closed, and return the exit
        code (-1 where there is none)."""
        code: int = self._channel.recv_exit_status()
        return code

    def resize(self, columns: int, rows: int) -> None:
        """Tell the terminal at the other end its new size."""
        with contextlib.suppress(*_LOST):  # the shell may just have ended
            self._channel.resize_pty(columns, rows)


class _StreamFile(io.RawIOBase):
    """The unbuffered file beneath ``ChannelStream.makefile``."""

    def __init__(self, stream: ChannelStream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        return self._stream.recv_into(buffer)

    def write(self, data: Any, /) -> int:
        return self._stream.send(data)
