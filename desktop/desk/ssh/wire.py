"""paramiko's transport, tuned for one long-lived, busy connection.

Everything that reaches into paramiko's protected parts is in this module, ``packets`` and
``channel``; the distribution pins paramiko below 6 for their sake.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import paramiko
from paramiko.common import (
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_WINDOW_ADJUST,
    cMSG_CHANNEL_OPEN,
    cMSG_CHANNEL_OPEN_SUCCESS,
    cMSG_GLOBAL_REQUEST,
)
from paramiko.message import Message

from desk.ssh.channel import ChannelRefused, OpenFailure, WireChannel
from desk.ssh.forward import Relays
from desk.ssh.packets import (
    MAX_PACKET_BYTES,
    SMALL_BYTES,
    WINDOW_BYTES,
    DataPacketizer,
    Payload,
    Payloads,
    ReadAhead,
)

# paramiko logs what it also raises, with stack traces; the errors that this package raises say it.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

_CHANNEL_NUMBERS = 1 << 16
_LIMIT_S = 1.0 if sys.platform == "win32" else None
"""On Windows a reader may sleep on when its socket is shut down, and has to look by itself."""

CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
DIGESTS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)


class Wire(paramiko.Transport):  # type: ignore[misc]
    """One SSH connection over ``connection``; ``ended`` is set when it is over, however that
    came about, and ``end_reason`` says by then how."""

    _channel_handler_table: ClassVar[dict[int, Any]] = {
        **paramiko.Transport._channel_handler_table,
        MSG_CHANNEL_WINDOW_ADJUST: WireChannel.adjust_window,
    }

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(
            ReadAhead(connection),
            default_window_size=WINDOW_BYTES,
            default_max_packet_size=MAX_PACKET_BYTES,
            packetizer_class=DataPacketizer,
        )
        self.ended = threading.Event()
        self.end_reason = ""
        self._channel_counter: int
        self._connection = connection
        self.relays = Relays(connection, self)
        self._ping_lock = threading.Lock()
        self._refusals: dict[int, ChannelRefused] = {}
        self._note_failure = self._handler_table[MSG_CHANNEL_OPEN_FAILURE]
        self._handler_table[MSG_CHANNEL_OPEN_FAILURE] = self._on_open_failure
        self._listeners: dict[str, Callable[[WireChannel], None]] = {}
        self._note_opening = self._handler_table[MSG_CHANNEL_OPEN]
        self._handler_table[MSG_CHANNEL_OPEN] = self._on_open
        options = self.get_security_options()
        options.ciphers = CIPHERS
        options.digests = DIGESTS

    def run(self) -> None:
        try:
            super().run()
        finally:
            error = self.saved_exception
            if error is None or isinstance(error, EOFError):
                self.end_reason = self.end_reason or "the machine ended it"
            else:
                self.end_reason = self.end_reason or reason_of(error)
            self.ended.set()
            self.relays.close()

    def calm(self) -> None:
        """Wait without a time limit once the handshake is over, and serve the relays while waiting.
        ``abort`` wakes whoever waits."""
        self._connection.settimeout(_LIMIT_S)
        self.packetizer.take = self.relays.take
        self.sock.before_reading = self.relays.wait

    def abort(self, reason: str = "Desk ended it") -> None:
        """End the connection without a word to the server; wakes every thread that uses it."""
        if not self.end_reason:
            self.end_reason = reason
        with contextlib.suppress(OSError):  # the other side may have been first
            self._connection.shutdown(socket.SHUT_RDWR)
        self.packetizer.close()
        self.relays.wake()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(timeout=5.0)
        if not self.is_alive():
            self.relays.close()

    def _send_user_message(self, message: Message) -> None:
        self.send_payloads(Payloads([Payload(message.asbytes())]))

    def send_payloads(self, payloads: Payloads) -> None:
        """Send messages, small ones together with those of other threads.

        While keys are being agreed on it waits as paramiko does. What was sent before that goes
        out before it, since each sending begins with what waits.
        """
        is_small = sum(payload.size for payload in payloads) <= SMALL_BYTES
        with self.clear_to_send_lock:
            is_clear = bool(self.active and self.clear_to_send.is_set())
            if is_clear and is_small:
                self.packetizer.wait_with(payloads)
            elif is_clear:
                self.packetizer.send_message(payloads)
        if not is_clear:
            super()._send_user_message(payloads)
        elif is_small:
            self.packetizer.send_waiting()

    def may_send(self) -> bool:
        """Whether a message can go out now, without waiting for keys to be agreed on."""
        return bool(self.clear_to_send.is_set()) and not self.packetizer.closed

    def ping(self, timeout_s: float) -> bool:
        """Ask the server for a sign of life; return whether it came in time. Raises ``EOFError``
        where the connection is over."""
        with self._ping_lock:
            answered = self._ask("keepalive@openssh.com", lambda message: None)
            came = answered.wait(timeout_s)
        if came and not self.active:
            raise EOFError("the connection is over")
        return came

    def listen_unix(
        self, path: str, accept: Callable[[WireChannel], None], timeout_s: float
    ) -> bool:
        """Have the server listen on a Unix socket (OpenSSH's PROTOCOL, 2.4); return whether it
        does. Each connection there is given to ``accept`` in a thread of its own."""
        self._listeners[path] = accept
        with self._ping_lock:
            self.global_response = None
            answered = self._ask(
                "streamlocal-forward@openssh.com", lambda message: message.add_string(path)
            )
            listens = answered.wait(timeout_s) and self.global_response is not None
        if not listens:
            self._listeners.pop(path, None)
        return listens

    def _ask(self, kind: str, add_fields: Callable[[Message], None]) -> threading.Event:
        """Send a global request with a reply; the event is set when the reply is there. The
        caller holds the lock, as there is one place for replies."""
        answered = threading.Event()
        self.completion_event = answered
        message = Message()
        message.add_byte(cMSG_GLOBAL_REQUEST)
        message.add_string(kind)
        message.add_boolean(True)
        add_fields(message)
        self._send_user_message(message)
        # The transport's end sets the event of that moment; this one may have come after it.
        if not self.active:
            answered.set()
        return answered

    def open_session_channel(self, timeout_s: float) -> WireChannel:
        """Open a channel for a command (RFC 4254, 6.1)."""
        return self._open("session", lambda message: None, timeout_s)

    def open_tcp_channel(self, host: str, port: int, timeout_s: float) -> WireChannel:
        """Open a channel to a TCP address as the server sees it (RFC 4254, 7.2)."""

        def fields(message: Message) -> None:
            message.add_string(host)
            message.add_int(port)
            message.add_string("127.0.0.1")
            message.add_int(0)

        return self._open("direct-tcpip", fields, timeout_s)

    def open_unix_channel(self, path: str, timeout_s: float) -> WireChannel:
        """Open a channel to a Unix socket on the server (OpenSSH's PROTOCOL, 2.4)."""

        def fields(message: Message) -> None:
            message.add_string(path)
            message.add_string("")
            message.add_int(0)

        return self._open("direct-streamlocal@openssh.com", fields, timeout_s)

    def _open(
        self, kind: str, add_fields: Callable[[Message], None], timeout_s: float
    ) -> WireChannel:
        """Open a channel as ``Transport.open_channel`` does, for kinds that it does not know, and
        with the refusal of this very channel where several are being opened."""
        if not self.active:
            raise ChannelRefused(OpenFailure.NO_ANSWER, "the SSH connection is lost")
        opened = threading.Event()
        with self.lock:
            number = self._next_channel()
            message = Message()
            message.add_byte(cMSG_CHANNEL_OPEN)
            message.add_string(kind)
            message.add_int(number)
            message.add_int(WINDOW_BYTES)
            message.add_int(MAX_PACKET_BYTES)
            add_fields(message)
            channel = WireChannel(number)
            self._channels.put(number, channel)
            self.channel_events[number] = opened
            self.channels_seen[number] = True
            channel._set_transport(self)
            channel._set_window(WINDOW_BYTES, MAX_PACKET_BYTES)
        self._send_user_message(message)
        deadline = time.monotonic() + timeout_s
        # The transport's end sets the event too, unless it ended just before it was entered.
        while not opened.wait(0.5) and self.active and time.monotonic() < deadline:
            pass
        refusal = self._refusals.pop(number, None)
        if refusal is not None:
            raise refusal
        if channel.active and not channel.closed:
            return channel
        with self.lock:
            self.channel_events.pop(number, None)
        reason = "the server does not answer" if self.active else "the SSH connection is lost"
        raise ChannelRefused(OpenFailure.NO_ANSWER, reason)

    def _on_open_failure(self, message: Message) -> None:
        number = message.get_int()
        failure = OpenFailure(message.get_int())
        self._refusals[number] = ChannelRefused(failure, message.get_text())
        message.rewind()
        self._note_failure(message)
        self.saved_exception = None

    def _on_open(self, message: Message) -> None:
        """Take a connection to one of our sockets; paramiko refuses everything else."""
        kind = message.get_text()
        number, window, packet = message.get_int(), message.get_int(), message.get_int()
        path = message.get_text() if kind == "forwarded-streamlocal@openssh.com" else ""
        accept = self._listeners.get(path)
        if accept is None:
            message.rewind()
            self._note_opening(message)
            return
        with self.lock:
            ours = self._next_channel()
            channel = WireChannel(ours)
            self._channels.put(ours, channel)
            self.channels_seen[ours] = True
            channel._set_transport(self)
            channel._set_window(WINDOW_BYTES, MAX_PACKET_BYTES)
            channel._set_remote_channel(number, window, packet)
        answer = Message()
        answer.add_byte(cMSG_CHANNEL_OPEN_SUCCESS)
        for value in (number, ours, WINDOW_BYTES, MAX_PACKET_BYTES):
            answer.add_int(value)
        self._send_message(answer)
        threading.Thread(target=accept, args=(channel,), name="accepted", daemon=True).start()

    def _next_channel(self) -> Any:
        # WORKAROUND: paramiko remembers every channel number it ever used (Transport.
        # channels_seen); a connection that lives for months must use numbers again.
        if self._channel_counter >= _CHANNEL_NUMBERS:
            self._channel_counter = 0
        return super()._next_channel()


def reason_of(error: BaseException) -> str:
    """Say in words why a connection failed or ended."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or "the connection was lost"
