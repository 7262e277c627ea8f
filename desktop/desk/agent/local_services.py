"""What listens on this computer's loopback, for containers that call ``host.docker.internal``.

The machine's sshd listens on a socket for this agent; the engine connects there for each of the
containers' connections, names the port (``tcp PORT``), and reads ``+`` or ``-`` before the
connection's own bytes. Only root of the machine can open the socket, so containers come by the
engine's relay alone.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading

from desk.agent.acceptor import MOST_CONNECTIONS
from desk.agent.guest_mounts import GuestMounts
from desk.errors import DeskError
from desk.ssh.session import Session
from desk.ssh.stream import ChannelStream

_log = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "::1")
_CONNECT_S = 10.0
_ORDER_S = 20.0
_ORDER = re.compile(rb"tcp ([1-9][0-9]{0,4})\n")
_LONGEST_ORDER_BYTES = 16


class LocalServices:
    """Takes connections to this computer; calls may come from any thread."""

    def __init__(self, mounts: GuestMounts) -> None:
        self._mounts = mounts
        self._served: Session | None = None
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def offer(self, session: Session) -> str:
        """Take connections over ``session`` while it lasts; return the machine's socket for them,
        or an empty text where it has none."""
        path = self._mounts.local_services
        if self._served is session:
            return path
        try:
            self._mounts.prepare(session, path)
            session.listen_unix(path, lambda remote: self._serve(session, remote))
        except DeskError as error:
            _log.warning("containers do not reach this computer: %s. %s", error.text, error.hint)
            return ""
        self._served = session
        return path

    def _serve(self, session: Session, remote: ChannelStream) -> None:
        if not self._room.acquire(blocking=False):
            _log.warning("more than %d connections at once; one was refused", MOST_CONNECTIONS)
            remote.close()
            return
        local = None
        try:
            local = self._connect(remote)
        except OSError as error:
            _log.info("a container's connection to this computer ended: %s", error)
        if local is not None:
            session.relay(local, remote, ended=self._room.release)
        else:
            remote.close()
            self._room.release()

    def _connect(self, remote: ChannelStream) -> socket.socket | None:
        """Connect as the engine asks for, and tell it whether that could be done."""
        port = _ordered_port(remote)
        local = _connected(port) if port else None
        try:
            remote.sendall(b"-" if local is None else b"+")
        except OSError:
            if local is not None:
                local.close()
            raise
        return local


def _ordered_port(remote: ChannelStream) -> int:
    """Return the port that the engine asks for, 0 where it does not ask in this way."""
    order = b""
    remote.settimeout(_ORDER_S)
    while not order.endswith(b"\n") and len(order) < _LONGEST_ORDER_BYTES:
        piece = remote.recv(1)
        if not piece:
            break
        order += piece
    remote.settimeout(None)
    found = _ORDER.fullmatch(order)
    return int(found[1]) if found and int(found[1]) < 1 << 16 else 0


def _connected(port: int) -> socket.socket | None:
    for address in _LOOPBACK:
        with contextlib.suppress(OSError):
            return socket.create_connection((address, port), _CONNECT_S)
    return None
