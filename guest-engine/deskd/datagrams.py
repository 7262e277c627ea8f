"""``deskd relay-datagrams``: UDP ports of the machine, over standard input and output.

The agent on the laptop starts it once for all published UDP ports: an SSH connection carries
streams only. Both directions are frames of seven bytes and a content: one byte says what it is,
four are the flow's number, two the content's length. The agent opens a flow (``OPEN``, with
``ADDRESS PORT``) for each client that it has, sends and gets datagrams (``DATA``), and closes it
(``CLOSE``) when nothing came for a while. The first bytes on standard output are ``GREETING``.

As with ``dial-stdio``, only built-in modules are imported.
"""

from __future__ import annotations

import _socket
import select
import sys
from posix import read, write

GREETING = b"desk datagrams 1\n"
OPEN, DATA, CLOSE = 1, 2, 3
HEADER_BYTES = 7
DATAGRAM_BYTES = 65535
BLOCK_BYTES = 256 * 1024
BUFFER_BYTES = 1 << 20
DATAGRAMS_A_TURN = 64
INPUT, OUTPUT = 0, 1


def relay_datagrams() -> int:
    """Relay until standard input or output ends; return the exit code."""
    relay = _Relay()
    if not _write_all(GREETING):
        return 0
    try:
        relay.run()
    except ValueError as error:
        sys.stderr.write(f"deskd: {error}\n")
        return 1
    return 0


class _Relay:
    def __init__(self) -> None:
        self._poll = select.poll()
        self._flows: dict[int, _socket.socket] = {}
        self._numbers: dict[int, int] = {}  # of flows, by descriptor
        self._unread = b""

    def run(self) -> None:
        """Relay until one side is gone. Raises ``ValueError`` for input that is no frame."""
        self._poll.register(INPUT, select.POLLIN)
        self._poll.register(OUTPUT, 0)  # hang-ups only: nobody reads any more
        while True:
            answers: list[bytes] = []
            for descriptor, _ in self._poll.poll():
                if descriptor == OUTPUT:
                    return
                if descriptor != INPUT:
                    self._collect(descriptor, answers)
                    continue
                block = read(INPUT, BLOCK_BYTES)
                if not block:
                    return
                self._take(self._unread + block, answers)
            if answers and not _write_all(b"".join(answers)):
                return

    def _take(self, data: bytes, answers: list[bytes]) -> None:
        """Obey the whole frames in ``data`` and keep the rest."""
        position = 0
        while len(data) - position >= HEADER_BYTES:
            content = position + HEADER_BYTES
            end = content + int.from_bytes(data[content - 2 : content], "big")
            if end > len(data):
                break
            flow = int.from_bytes(data[position + 1 : position + 5], "big")
            kind, position = data[position], end
            if kind == DATA:
                self._send(flow, data[content:end])
            elif kind == OPEN:
                self._open(flow, data[content:end], answers)
            elif kind == CLOSE:
                self._close(flow)
            else:
                raise ValueError(f"frames of the kind {kind} are unknown; is the agent newer?")
        self._unread = data[position:]

    def _open(self, flow: int, place: bytes, answers: list[bytes]) -> None:
        self._close(flow)
        address, _, port = place.decode("ascii", "replace").partition(" ")
        family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
        try:
            # A name would be looked up, and everybody waits.
            _socket.inet_pton(family, address)
            opened = _socket.socket(family, _socket.SOCK_DGRAM)
            opened.setblocking(False)
            opened.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, BUFFER_BYTES)
            opened.connect((address, int(port)))
        except (OSError, ValueError, OverflowError):  # no such address, or no descriptor left
            answers.append(frame(CLOSE, flow, b""))
            return
        self._flows[flow] = opened
        self._numbers[opened.fileno()] = flow
        self._poll.register(opened.fileno(), select.POLLIN)

    def _send(self, flow: int, datagram: bytes) -> None:
        opened = self._flows.get(flow)
        if opened is None:
            return
        try:
            opened.send(datagram)
        except OSError:
            return  # lost, as datagrams may be: nobody is there yet, or a buffer is full

    def _close(self, flow: int) -> None:
        closed = self._flows.pop(flow, None)
        if closed is not None:
            del self._numbers[closed.fileno()]
            self._poll.unregister(closed.fileno())
            closed.close()

    def _collect(self, descriptor: int, answers: list[bytes]) -> None:
        flow = self._numbers.get(descriptor)
        if flow is None:  # closed by what came in the same turn
            return
        for _ in range(DATAGRAMS_A_TURN):
            try:
                datagram = self._flows[flow].recv(DATAGRAM_BYTES)
            except OSError:  # nothing more, or word that nobody was there
                return
            answers.append(frame(DATA, flow, datagram))


def frame(kind: int, flow: int, content: bytes) -> bytes:
    """Return a frame as it goes over the wire."""
    return b"".join(
        (bytes((kind,)), flow.to_bytes(4, "big"), len(content).to_bytes(2, "big"), content)
    )


def _write_all(data: bytes) -> bool:
    """Return whether somebody still reads."""
    view = memoryview(data)
    while view:
        try:
            view = view[write(OUTPUT, view) :]
        except BrokenPipeError:
            return False
    return True
