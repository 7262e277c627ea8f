"""Shared folders past SSH: connections that QEMU takes from its guest and hands to the agent.

Only QEMU starts ``folder_door``, which brings them, and only this computer's user can open its
socket. In the machine any program might connect, so the paths that it asks for begin with a secret
that only root there is told (``GuestMounts``).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from desk.ssh.endpoint import Endpoint

_log = logging.getLogger(__name__)

_HAND_OVER_S = 5.0
_PURPOSE = b"desk folders"  # what else is made of the key differs by this


def folders_secret(endpoint: Endpoint) -> str:
    """Return the secret of a machine's folders: always the same, so that a new agent serves what
    an older one mounted, and known to nobody who has not the machine's key."""
    key = endpoint.private_key.read_bytes()
    return hashlib.blake2b(key, digest_size=16, person=_PURPOSE).hexdigest()


class DirectFolders:
    """Takes connections over from ``folder_door``. ``serve`` gets each in a thread of its own, and
    leaves the closing to this."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve

    def handle(self, door: socket.socket, ended: Callable[[], None]) -> None:
        """Begin to serve what a door brings; an acceptor's ``Handler``."""
        threading.Thread(target=self._run, args=(door, ended), name="folder", daemon=True).start()

    def _run(self, door: socket.socket, ended: Callable[[], None]) -> None:
        try:
            with contextlib.closing(door):
                connection = _brought(door)
            if connection is not None:
                with contextlib.closing(connection):
                    self._serve(connection)
        except OSError as error:
            _log.info("a connection of shared folders ended: %s", error)
        finally:
            ended()


def _brought(door: socket.socket) -> socket.socket | None:
    door.settimeout(_HAND_OVER_S)
    _data, descriptors, _flags, _address = socket.recv_fds(door, 1, 1)
    if not descriptors:
        return None
    connection = socket.socket(fileno=descriptors[0])
    connection.setblocking(True)
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def door_program() -> Path:
    """Return the file that QEMU runs with this Python."""
    return Path(__file__).with_name("folder_door.py")
