"""Published UDP ports: datagrams of this computer's clients to the machine and back.

SSH carries streams only, so ``deskd relay-datagrams`` runs in the machine (its module describes the
frames) while there is such a port here. Each client of a port is a flow with a socket of its own
there, so that answers find back; a flow that was silent for a while is closed, as are those that
were silent longest where there are too many. What is sent while there is no connection is lost,
as datagrams may be.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from desk.agent.door import last_words
from desk.agent.link import Link
from desk.agent.watched_sockets import WatchedSockets
from desk.errors import SshError
from desk.ssh.stream import ChannelStream

_log = logging.getLogger(__name__)

GREETING = b"desk datagrams 1\n"
IDLE_S = 90.0
MOST_FLOWS = 900
"""Each is a descriptor in the machine, where a login has 1024 of them."""

_OPEN, _DATA, _CLOSE = 1, 2, 3
_HEADER = struct.Struct("!BIH")
_DATAGRAM_BYTES = 65535
_DATAGRAMS_A_TURN = 64
_READ_BYTES = 1 << 18
_BUFFER_BYTES = 1 << 20
_LINK_S = 1.0
_PRUNE_S = 5.0
_RETRY_S = 1.0
_STOP_S = 3.0


@dataclass(frozen=True, slots=True)
class _Client:
    port: socket.socket
    address: Any  # as the port's recvfrom gave it


@dataclass(slots=True)
class _Flow:
    number: int
    used_at: float


class Datagrams:
    """The UDP sockets of one agent; ``add`` and ``remove`` may come from any thread. ``command``
    is the machine's that relays."""

    def __init__(self, link: Link, command: str) -> None:
        self._link = link
        self._command = command
        self._lock = threading.Lock()
        # With where they lead to in the machine.
        self._ports: WatchedSockets[bytes] = WatchedSockets()
        self._flows: OrderedDict[_Client, _Flow] = OrderedDict()  # the longest silent first
        self._clients: dict[int, _Client] = {}
        self._next_flow = 1
        self._stream: ChannelStream | None = None
        self._tried_at = 0.0
        self._error = ""
        self._thread = threading.Thread(target=self._run, name="datagrams", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Close every port and end the machine's command; idempotent."""
        self._ports.stop()
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.close()  # wakes a thread that waits for room in it
        self._thread.join(timeout=_STOP_S)

    @property
    def error(self) -> str:
        """Why nothing is relayed, although there are ports; empty while all is well."""
        with self._lock:
            return self._error

    def add(self, port: socket.socket, address: str, number: int) -> None:
        """Relay what comes to a bound socket, which is taken over, to ``address`` and ``number``
        in the machine."""
        with contextlib.suppress(OSError):  # less room for bursts, then
            port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._ports.add(port, f"{address} {number}".encode())

    def remove(self, port: socket.socket) -> None:
        """Close a port; it is free when this returns."""
        self._ports.remove(port)

    # --- to the machine ------------------------------------------------------------------------

    def _run(self) -> None:
        pruned_at = time.monotonic()
        frames: list[bytes] = []
        while not self._ports.stopping:
            self._forget_flows_of(self._ports.settle(), frames)
            if self._ports:
                stream = self._connected()
                ready = self._ports.readable(_RETRY_S if stream is None else _PRUNE_S)
            else:
                self._disconnect()
                stream = None
                ready = self._ports.readable()
            for port in ready:
                self._collect(port, frames)
            if time.monotonic() - pruned_at > _PRUNE_S:
                pruned_at = time.monotonic()
                self._prune(frames)
            if frames and stream is not None:
                with contextlib.suppress(OSError):  # its reader sees the end, too
                    stream.sendall(b"".join(frames))
            frames.clear()
        self._ports.close()

    def _forget_flows_of(self, ports: list[socket.socket], frames: list[bytes]) -> None:
        if not ports:
            return
        with self._lock:
            for client in [client for client in self._flows if client.port in ports]:
                self._forget(client, frames)

    def _forget(self, client: _Client, frames: list[bytes]) -> None:
        flow = self._flows.pop(client)
        del self._clients[flow.number]
        frames.append(_HEADER.pack(_CLOSE, flow.number, 0))

    def _collect(self, port: socket.socket, frames: list[bytes]) -> None:
        for _ in range(_DATAGRAMS_A_TURN):
            try:
                datagram, address = port.recvfrom(_DATAGRAM_BYTES)
            except OSError:  # nothing more, or word that a client has gone
                return
            with self._lock:
                if self._stream is None:
                    continue
                flow = self._flow_of(_Client(port, address), frames)
            if flow:
                frames += (_HEADER.pack(_DATA, flow, len(datagram)), datagram)

    def _flow_of(self, client: _Client, frames: list[bytes]) -> int:
        """Return a client's flow, which may be a new one; 0 for a port that has just gone."""
        place = self._ports.purpose(client.port)
        if place is None:
            return 0
        flow = self._flows.get(client)
        if flow is None:
            if len(self._flows) >= MOST_FLOWS:
                self._forget(next(iter(self._flows)), frames)
            flow = self._flows[client] = _Flow(self._next_flow, 0.0)
            self._next_flow = self._next_flow % 0xFFFFFFFF + 1
            self._clients[flow.number] = client
            frames += (_HEADER.pack(_OPEN, flow.number, len(place)), place)
        flow.used_at = time.monotonic()
        self._flows.move_to_end(client)
        return flow.number

    def _prune(self, frames: list[bytes]) -> None:
        with self._lock:
            while self._flows:
                client, flow = next(iter(self._flows.items()))
                if time.monotonic() - flow.used_at < IDLE_S:
                    return
                self._forget(client, frames)

    # --- the machine's command -----------------------------------------------------------------

    def _connected(self) -> ChannelStream | None:
        """Return the stream to the machine's command, which is started where it does not run."""
        with self._lock:
            if self._stream is not None:
                return self._stream
            if time.monotonic() - self._tried_at < _RETRY_S or self._ports.stopping:
                return None
        try:
            session = self._link.session(_LINK_S, urgent=False)
            stream = session.open_exec(self._command)
        except SshError as error:
            self._tell(error.text)
            return None
        finally:
            self._tried_at = time.monotonic()
        with self._lock:
            self._stream = stream
        if self._ports.stopping:
            stream.close()
        threading.Thread(target=self._serve, args=(stream,), name="datagrams", daemon=True).start()
        return stream

    def _disconnect(self) -> None:
        """End the machine's command: nothing runs there for nobody."""
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.close()

    def _tell(self, error: str) -> None:
        with self._lock:
            news = error and error != self._error
            self._error = error
        if news:
            _log.warning("published UDP ports lead nowhere: %s", error)

    def _serve(self, stream: ChannelStream) -> None:
        """Give the machine's datagrams to their clients until the command ends."""
        try:
            self._relay(stream)
        except OSError as error:
            _log.info("the relay of UDP ports was lost: %s", error)
        finally:
            with self._lock:
                self._stream = None
                self._flows.clear()
                self._clients.clear()
            stream.close()
            self._ports.wake()

    def _relay(self, stream: ChannelStream) -> None:
        greeting = stream.recv_exactly(len(GREETING))
        if len(greeting) < len(GREETING):
            if self._ports and not self._ports.stopping:
                words = last_words(stream) or f"`{self._command}` ends at once"
                self._tell(f"the machine does not relay them ({words})")
            return
        if greeting != GREETING:
            self._tell(f"the machine's `{self._command}` speaks another language")
            return
        self._tell("")
        unread = b""
        while piece := stream.recv(_READ_BYTES):
            unread = self._deliver(unread + piece if unread else piece)

    def _deliver(self, data: bytes) -> bytes:
        """Send the whole frames in ``data`` to their clients; return the rest."""
        position = 0
        while len(data) - position >= _HEADER.size:
            kind, number, length = _HEADER.unpack_from(data, position)
            content = position + _HEADER.size
            if content + length > len(data):
                break
            position = content + length
            with self._lock:
                client = self._clients.get(number)
                if client is None:
                    continue
                if kind == _CLOSE:
                    del self._clients[number], self._flows[client]
                    continue
                flow = self._flows[client]
                flow.used_at = time.monotonic()
                self._flows.move_to_end(client)
            with contextlib.suppress(OSError):  # a client that has gone, a port that just closed
                client.port.sendto(data[content:position], client.address)
        return data[position:]
