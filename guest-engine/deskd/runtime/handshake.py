"""The talk between a monitor and the process it makes, up to the program's execution.

::

    monitor                                  child
       |  clone                                |
       |-------------------------------------->|  (in new namespaces)
       |  write ID maps, when there are any    |  join namespaces, mount the root,
       |  make the cgroup, write limits        |  /proc, /dev, …
       |  send the outside netlink messages    |
       |                                       |
       |<------- CONSOLE (+ terminal fd) ------|  with a terminal only
       |-------- OUTSIDE_READY --------------->|  enter the cgroup, inside netlink messages,
       |<------- NAMES (+ two sockets) --------|  with a name server only
       |                                       |  binds, pivot_root, user, capabilities
       |<------- PREPARED ---------------------|
       |                                       |  held
       |-------- EXECUTE --------------------->|  seccomp, execve
       |<------- end of file ------------------|  the socket is close-on-exec: it has executed

    at any point, instead of its next message:
       |<------- FAILED (step, errno, text) ---|  and the child exits

With ID maps the child waits for MAPPED before it does anything. One message is one packet of a
``SOCK_SEQPACKET`` socket: a JSON object with ``type`` and what belongs to it.
"""

from __future__ import annotations

import json
import select
import socket
from enum import StrEnum
from typing import Any, NoReturn


class Message(StrEnum):
    """What is said."""

    MAPPED = "mapped"
    CONSOLE = "console"
    OUTSIDE_READY = "outside-ready"
    NAMES = "names"
    PREPARED = "prepared"
    EXECUTE = "execute"
    FAILED = "failed"


_PACKET_BYTES = 65536


class StepFailed(Exception):
    """A step of the child's failed. ``kind`` is the name of the error class to raise at the
    engine, ``exit_code`` Docker's for a program that cannot be executed (else 0)."""

    def __init__(self, step: str, text: str, number: int, kind: str, exit_code: int = 0) -> None:
        super().__init__(text)
        self.step = step
        self.text = text
        self.number = number
        self.kind = kind
        self.exit_code = exit_code

    def to_json(self) -> dict[str, Any]:
        """Write it down for the other side."""
        return {
            "step": self.step,
            "text": self.text,
            "errno": self.number,
            "kind": self.kind,
            "exit_code": self.exit_code,
        }


class Disconnected(Exception):
    """The other side has gone."""


class Channel:
    """One end of the talk."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Make the two ends; both are close-on-exec."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    @property
    def ended(self) -> bool:
        """Whether the other end is closed; its last messages may still be here."""
        poll = select.poll()
        poll.register(self._socket, 0)  # a hang-up is told in any case
        return bool(poll.poll(0))

    def send(self, message: Message, *fds: int, **content: Any) -> None:
        """Say something. Raises ``Disconnected``."""
        packet = json.dumps({"type": message, **content}).encode()[:_PACKET_BYTES]
        try:
            if fds:
                socket.send_fds(self._socket, [packet], list(fds))
            else:
                self._socket.send(packet)
        except (BrokenPipeError, ConnectionResetError):
            raise Disconnected from None

    def receive(self) -> tuple[Message, dict[str, Any], list[int]]:
        """Hear the next message with its content and descriptors.

        Raises ``StepFailed`` for FAILED and ``Disconnected`` at the end.
        """
        try:
            packet, fds, _, _ = socket.recv_fds(self._socket, _PACKET_BYTES, 4)
        except ConnectionResetError:
            # The other side left something unread; its last message may still be here.
            packet, fds, _, _ = socket.recv_fds(self._socket, _PACKET_BYTES, 4)
        if not packet:
            raise Disconnected
        content = json.loads(packet)
        message = Message(content.pop("type"))
        if message is Message.FAILED:
            raise StepFailed(
                content["step"],
                content["text"],
                content["errno"],
                content["kind"],
                content["exit_code"],
            )
        return message, content, fds

    def expect(self, wanted: Message) -> list[int]:
        """Hear exactly ``wanted``; return the descriptors that came with it."""
        message, _, fds = self.receive()
        if message is not wanted:
            _protocol_error(message, wanted)
        return fds


def _protocol_error(message: Message, wanted: Message) -> NoReturn:
    raise RuntimeError(f"handshake: {message} came where {wanted} was due")
