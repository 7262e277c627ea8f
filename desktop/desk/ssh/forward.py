"""Copying between local sockets and channels, both ways, until both sides are done.

All of it happens in the thread that reads the SSH connection, which waits for the local sockets,
too: what comes from the machine is written where it is decrypted, and what several local sockets
have to say goes out with one system call. No thread has to wake another one for it. What a local
socket does not take at once is kept, and the channel's window keeps the machine from sending more
than that; while the channel has no room, its local socket is not read.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import selectors
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from desk.ssh import direct
from desk.ssh.channel import ChannelRefused, OpenFailure, WireChannel
from desk.ssh.direct import DirectChannel
from desk.ssh.packets import SMALL_BYTES, Payload, Payloads

_READ_BYTES = 1 << 18
_PIECES_A_CALL = 64
_OPEN_S = 15.0
_LAST_WORDS_S = 5.0
_LOST = "the SSH connection is lost"
_HEAD = struct.Struct("!BI")  # a message's type and its channel
_LIMIT_S = 1.0 if sys.platform == "win32" else None
"""On Windows a connection that is shut down need not wake who waits for it."""

WhenSilent = Callable[[], bytes]
Refused = Callable[[ChannelRefused], None]
Ended = Callable[[], None]


class Connection(Protocol):
    """What is needed of the SSH connection."""

    def send_payloads(self, payloads: Payloads) -> None: ...
    def may_send(self) -> bool:
        """Whether a message can go out now, without waiting for keys to be agreed on."""


class Relay:
    """One local socket and one channel. Only ``Relays`` changes it.

    It takes the place of the buffer of paramiko's channel, which calls ``feed`` and ``close``.
    """

    __slots__ = (
        "_relays", "awaits_room", "channel", "descriptor", "ended", "events", "finished",
        "half_closed", "local", "local_ended", "pending", "received", "when_silent",
    )  # fmt: skip

    def __init__(
        self,
        relays: Relays,
        local: socket.socket,
        channel: WireChannel | DirectChannel,
        when_silent: WhenSilent | None,
        ended: Ended,
    ) -> None:
        self._relays = relays
        self.local = local
        self.descriptor = local.fileno()
        self.channel = channel
        self.when_silent = when_silent
        self.ended = ended
        self.pending: deque[memoryview] = deque()
        self.events = 0
        self.received = self.awaits_room = False
        self.local_ended = self.half_closed = self.finished = False

    def feed(self, data: bytes | memoryview) -> None:
        """Take what came from the machine."""
        self._relays.deliver(self, memoryview(data))

    def close(self) -> None:
        """Take note that no more will come, or that the channel is closed."""
        self._relays.soon(lambda: self._relays.see_end(self))

    def see_room(self) -> None:
        """Take note that the machine has made room."""
        self._relays.see_room(self)


class Opening(NamedTuple):
    """A channel that is being opened for a local socket."""

    local: socket.socket
    channel: DirectChannel
    deadline: float
    opened: Callable[[], None]
    refused: Refused
    ended: Ended


class Relays:
    """All relays over one SSH connection.

    ``add``, ``open``, ``soon`` and ``wake`` may come from any thread; everything else is for the
    thread that reads the connection.
    """

    def __init__(self, socket_: socket.socket, connection: Connection) -> None:
        self._connection = connection
        self._selector = selectors.DefaultSelector()
        self._selector.register(socket_, selectors.EVENT_READ, None)
        self._wake_reader, self._wake_writer = socket.socketpair()
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, self._woken)
        # A client that half-closed still reads; one that went away must not leave a stream open in
        # the machine for ever. Linux tells the two apart (EPOLLHUP, epoll_ctl(2)). macOS reports
        # the same for both and Windows nothing; there the next write finds out.
        self._hangups = select.epoll() if sys.platform == "linux" else None
        if self._hangups is not None:
            self._selector.register(self._hangups, selectors.EVENT_READ, self._see_hangups)
        self._by_local: dict[int, Relay] = {}  # the local socket's descriptor
        self._by_channel: dict[int, Relay] = {}
        self._openings: dict[int, Opening] = {}  # by the channel's number, the oldest first
        self._given_up: dict[int, DirectChannel] = {}  # the server may open them still
        self._closing: set[int] = set()  # the server has not closed them yet
        self._ending: list[Relay] = []
        self._number = direct.FIRST_NUMBER
        self._out: list[Payload] = []
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._due: deque[Callable[[], None]] = deque()
        self._is_woken = False
        self._closed = False

    # --- from any thread -------------------------------------------------------------------

    def add(
        self,
        local: socket.socket,
        channel: WireChannel,
        *,
        ended: Ended,
        when_silent: WhenSilent | None = None,
    ) -> None:
        """Copy between ``local`` and an open channel until both have ended, close both, and call
        ``ended``.

        An end of data travels as a half-close, so that each direction may go on without the other.
        ``when_silent`` is called, in a thread of its own, where the machine's side ended without
        one byte; what it returns goes to the local side.
        """
        relay = Relay(self, local, channel, when_silent, ended)
        self.soon(lambda: self._begin(relay))

    def open(
        self,
        local: socket.socket,
        host: str,
        port: int,
        *,
        opened: Callable[[], None],
        refused: Refused,
        ended: Ended,
    ) -> None:
        """Have a channel opened to a TCP address as the server sees it, and do as ``add`` does once
        it is; ``opened`` says so.

        Where the server does not open it, ``refused`` is called instead, and nothing happened to
        ``local``.
        """

        def begin() -> None:
            if self._closed:
                refused(ChannelRefused(OpenFailure.NO_ANSWER, _LOST))
                return
            channel = DirectChannel(self._number)
            self._number = direct.next_number(self._number)
            deadline = time.monotonic() + _OPEN_S
            opening = Opening(local, channel, deadline, opened, refused, ended)
            self._openings[channel.number] = opening
            self._out.append(channel.ask(host, port))

        self.soon(begin)

    def soon(self, action: Callable[[], None]) -> None:
        """Have ``action`` done in the thread that reads the connection; here and now where the
        connection has ended."""
        with self._lock:
            closed, wakes = self._closed, False
            if not closed:
                self._due.append(action)
                wakes = not self._is_woken and threading.current_thread() is not self._thread
                self._is_woken = self._is_woken or wakes
        if closed:
            action()
        elif wakes:
            self.wake()

    def wake(self) -> None:
        """Let ``wait`` look at what is due, and whether the connection was closed."""
        with contextlib.suppress(OSError):  # full, or closed a moment ago: nobody waits
            self._wake_writer.send(b"x")

    # --- the thread that reads the connection ------------------------------------------------

    def wait(self) -> None:
        """Serve the local sockets until the connection can be read.

        Where nothing may be sent, because keys are being agreed on or the connection was closed, it
        returns at once.
        """
        self._thread = threading.current_thread()
        is_readable = False
        while not is_readable and self._connection.may_send():
            self._do_what_is_due()
            found = self._selector.select(self._pause_s())
            is_readable = not found and _LIMIT_S is not None
            for key, events in found:
                served = key.data
                if served is None:
                    is_readable = True
                elif isinstance(served, Relay):
                    if events & selectors.EVENT_WRITE and not served.finished:
                        self._write(served)
                    if events & selectors.EVENT_READ and not served.finished:
                        self._read(served)
                else:
                    served()
            self._flush()

    def close(self) -> None:
        """End every relay, since the connection has ended; idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        while self._due:
            self._due.popleft()()
        for opening in self._openings.values():
            opening.refused(ChannelRefused(OpenFailure.NO_ANSWER, _LOST))
        for relay in list(self._by_local.values()):
            self._finish(relay)
        self._selector.close()
        if self._hangups is not None:
            self._hangups.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def take(self, message: memoryview) -> bool:
        """Take a message of a channel; return whether it was for a relay."""
        kind, number = _HEAD.unpack_from(message)
        relay = self._by_channel.get(number)
        if relay is None:
            return number >= direct.FIRST_NUMBER and self._take_other(kind, number, message[5:])
        if kind == direct.DATA:
            self.deliver(relay, message[9:])  # behind its length
        elif isinstance(relay.channel, DirectChannel):
            self._take_for(relay, relay.channel, kind, message[5:])
        else:
            return False
        return True

    def _take_for(self, relay: Relay, channel: DirectChannel, kind: int, body: memoryview) -> None:
        if kind == direct.WINDOW_ADJUST:
            channel.take_room(body)
            self.see_room(relay)
        elif kind == direct.EOF:
            channel.eof_received = True
            self._ending.append(relay)
        elif kind == direct.CLOSE:
            self._out += channel.shut()
            self._ending.append(relay)
        elif kind == direct.REQUEST:
            self._out += channel.decline(body)

    def _take_other(self, kind: int, number: int, body: memoryview) -> bool:
        """Take a message for a channel that is not relayed yet, or no longer."""
        opening = self._openings.pop(number, None)
        if opening is not None:
            if kind == direct.CONFIRMATION:
                opening.channel.confirmed(body)
                self._begin(Relay(self, opening.local, opening.channel, None, opening.ended))
                opening.opened()
            else:
                opening.refused(direct.refusal(body))
        elif number in self._given_up:
            channel = self._given_up.pop(number)
            if kind == direct.CONFIRMATION:
                channel.confirmed(body)
                self._shut(channel)
        elif kind == direct.CLOSE:
            self._closing.discard(number)
        return True

    def deliver(self, relay: Relay, data: memoryview) -> None:
        """Write to the local side what it takes without waiting, and keep the rest."""
        relay.received = True
        if not relay.pending:
            try:
                sent = relay.local.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._finish(relay)
                return
            self._make_room(relay, sent)
            if sent == len(data):
                return
            data = data[sent:]
        relay.pending.append(data)
        self._watch(relay)

    def see_end(self, relay: Relay) -> None:
        """Do what the end of the machine's data, or of the channel, asks for."""
        channel = relay.channel
        if relay.finished or relay.pending or not (channel.eof_received or channel.closed):
            return
        if relay.when_silent is not None and not relay.received:
            self._leave_to(relay, relay.when_silent)
        elif channel.closed or relay.local_ended:
            self._finish(relay)
        elif not relay.half_closed:
            relay.half_closed = True
            # The machine may still read, until it closes the channel or the client goes away.
            with contextlib.suppress(OSError):
                relay.local.shutdown(socket.SHUT_WR)

    def see_room(self, relay: Relay) -> None:
        """Read on, since the machine has made room."""
        if relay.awaits_room:
            relay.awaits_room = False
            self._watch(relay)

    # --- local sockets ---------------------------------------------------------------------

    def _begin(self, relay: Relay) -> None:
        local, channel = relay.local, relay.channel
        try:
            local.setblocking(False)
            if local.family in (socket.AF_INET, socket.AF_INET6):
                local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            pass  # it has ended already, which reading tells
        self._by_local[relay.descriptor] = self._by_channel[channel.number] = relay
        if isinstance(channel, WireChannel):
            waiting, channel.in_buffer = channel.in_buffer, relay
            channel.relay = relay
            if len(waiting):
                self.deliver(relay, memoryview(waiting.empty()))
        if not relay.finished:
            self._watch(relay)
            self.see_end(relay)

    def _read(self, relay: Relay) -> None:
        """Read what the machine has room for."""
        channel = relay.channel
        if channel.closed:
            # sshd ends the whole connection where something comes for a channel that it has closed.
            relay.local_ended = True
            self._watch(relay)
            return
        room = channel.room
        if room <= 0:
            relay.awaits_room = True
            self._watch(relay)
            return
        try:
            count = relay.local.recv_into(self._buffer[: min(room, _READ_BYTES)])
        except BlockingIOError:
            return
        except OSError:
            self._finish(relay)
            return
        channel.room = room - count
        if not count:
            self._end_local(relay)
        elif count <= SMALL_BYTES:
            self._out.append(channel.data(bytes(self._buffer[:count])))
        else:
            most, data = channel.most_data_bytes, self._buffer[:count]
            self._out += [channel.data(data[at : at + most]) for at in range(0, count, most)]
            self._flush()  # before the buffer is used again

    def _end_local(self, relay: Relay) -> None:
        relay.local_ended = True
        if relay.channel.eof_received and not relay.pending:
            self._finish(relay)
        else:
            self._out += relay.channel.end()
            self._watch(relay)

    def _write(self, relay: Relay) -> None:
        """Write what was kept, as much as is taken."""
        pending = relay.pending
        try:
            if sys.platform == "win32":  # it has no sendmsg
                sent = relay.local.send(pending[0])
            else:
                sent = relay.local.sendmsg(list(itertools.islice(pending, _PIECES_A_CALL)))
        except BlockingIOError:
            return
        except OSError:
            self._finish(relay)
            return
        self._make_room(relay, sent)
        while pending and sent >= len(pending[0]):
            sent -= len(pending.popleft())
        if sent:
            pending[0] = pending[0][sent:]
        if not pending:
            self._watch(relay)
            self.see_end(relay)

    def _make_room(self, relay: Relay, sent: int) -> None:
        """Let the machine send so many bytes more, several packets' at a time."""
        payload = relay.channel.make_room(sent)
        if payload is not None:
            self._out.append(payload)

    def _watch(self, relay: Relay) -> None:
        """Wait for what the relay needs; where that is nothing, for its client to go away."""
        events = selectors.EVENT_WRITE if relay.pending else 0
        if not (relay.local_ended or relay.awaits_room):
            events |= selectors.EVENT_READ
        before, relay.events = relay.events, events
        if events == before:
            return
        if before and events:
            self._selector.modify(relay.local, events, relay)
        elif events:
            self._selector.register(relay.local, events, relay)
            if self._hangups is not None:
                with contextlib.suppress(FileNotFoundError):
                    self._hangups.unregister(relay.descriptor)
        else:
            self._selector.unregister(relay.local)
            if self._hangups is not None:
                self._hangups.register(relay.descriptor, 0)

    def _see_hangups(self) -> None:
        assert self._hangups is not None
        for descriptor, _event in self._hangups.poll(0):
            self._finish(self._by_local[descriptor])

    # --- ending ----------------------------------------------------------------------------

    def _finish(self, relay: Relay) -> None:
        """Close both sides."""
        if not relay.finished:
            self._let_go(relay)
            relay.local.close()
            self._shut(relay.channel)
            relay.ended()

    def _let_go(self, relay: Relay) -> None:
        relay.finished = True
        relay.pending.clear()
        if isinstance(relay.channel, WireChannel):
            relay.channel.relay = None
        del self._by_local[relay.descriptor], self._by_channel[relay.channel.number]
        if relay.events:
            self._selector.unregister(relay.local)
        elif self._hangups is not None:
            with contextlib.suppress(FileNotFoundError):
                self._hangups.unregister(relay.descriptor)

    def _leave_to(self, relay: Relay, when_silent: WhenSilent) -> None:
        """Have a thread say the last words, which may have to be waited for."""

        def speak() -> None:
            try:
                with contextlib.suppress(OSError):
                    relay.local.settimeout(_LAST_WORDS_S)
                    words = when_silent()
                    if words:
                        relay.local.sendall(words)
                        relay.local.shutdown(socket.SHUT_WR)
                        # Closed with something unread, it would end in an error for the client.
                        deadline = time.monotonic() + _LAST_WORDS_S
                        while time.monotonic() < deadline and relay.local.recv(_READ_BYTES):
                            pass
            finally:
                relay.local.close()
                self.soon(lambda: self._shut(relay.channel))
                relay.ended()

        self._let_go(relay)
        threading.Thread(target=speak, name="last-words", daemon=True).start()

    def _shut(self, channel: WireChannel | DirectChannel) -> None:
        payloads = channel.shut()
        if payloads and isinstance(channel, DirectChannel):
            self._closing.add(channel.number)
        self._out += payloads

    # --- the connection --------------------------------------------------------------------

    def _flush(self) -> None:
        if self._out:
            payloads, self._out = Payloads(self._out), []
            self._connection.send_payloads(payloads)

    def _do_what_is_due(self) -> None:
        while self._due:
            self._due.popleft()()
        if self._ending:
            ending, self._ending = self._ending, []
            for relay in ending:
                self.see_end(relay)
        if self._openings:
            now = time.monotonic()
            for opening in list(itertools.takewhile(
                lambda opening: opening.deadline < now, self._openings.values()
            )):  # fmt: skip
                self._give_up(opening)
        self._flush()

    def _give_up(self, opening: Opening) -> None:
        number = opening.channel.number
        self._given_up[number] = self._openings.pop(number).channel
        opening.refused(ChannelRefused(OpenFailure.NO_ANSWER, "the server does not answer"))

    def _pause_s(self) -> float | None:
        if not self._openings:
            return _LIMIT_S
        deadline = next(iter(self._openings.values())).deadline
        left_s = max(0.0, deadline - time.monotonic())
        return left_s if _LIMIT_S is None else min(left_s, _LIMIT_S)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_reader.recv(64)
        # Only now: what comes from here on wakes again, and what came before is looked at next.
        with self._lock:
            self._is_woken = False
