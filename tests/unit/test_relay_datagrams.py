"""``deskd relay-datagrams``, which agents start for UDP ports, spoken to frame by frame."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import pytest

from deskd.datagrams import CLOSE, DATA, DATAGRAM_BYTES, GREETING, HEADER_BYTES, OPEN, frame


class Relay:
    """The program, with its frames."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deskd", "relay-datagrams"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input: IO[bytes] = self.process.stdin
        self.output: IO[bytes] = self.process.stdout

    def send(self, data: bytes) -> None:
        self.input.write(data)
        self.input.flush()

    def receive(self) -> tuple[int, int, bytes]:
        """Return the next frame: its kind, flow and content."""
        head = self.output.read(HEADER_BYTES)
        length = int.from_bytes(head[5:], "big")
        return head[0], int.from_bytes(head[1:5], "big"), self.output.read(length)


@pytest.fixture
def relay() -> Iterator[Relay]:
    relay = Relay()
    with relay.process:
        assert relay.output.read(len(GREETING)) == GREETING
        yield relay
        relay.process.kill()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(60)
        yield server


def place(server: socket.socket) -> bytes:
    address, port = server.getsockname()[:2]
    return f"{address} {port}".encode()


def test_datagrams_keep_their_bounds_and_their_flows(relay: Relay, server: socket.socket) -> None:
    relay.send(frame(OPEN, 7, place(server)) + frame(OPEN, 8, place(server)))
    relay.send(frame(DATA, 7, b"one") + frame(DATA, 7, b"") + frame(DATA, 8, b"other"))
    came = [server.recvfrom(100) for _ in range(3)]
    assert [data for data, _ in came] == [b"one", b"", b"other"]
    assert came[0][1] == came[1][1] != came[2][1]
    for answer, sender in ((b"to other", came[2][1]), (b"", came[0][1]), (b"to one", came[0][1])):
        server.sendto(answer, sender)
    answers = [relay.receive() for _ in range(3)]
    assert [content for _kind, flow, content in answers if flow == 7] == [b"", b"to one"]
    assert (DATA, 8, b"to other") in answers


def test_frames_may_come_in_pieces(relay: Relay, server: socket.socket) -> None:
    for byte in frame(OPEN, 1, place(server)) + frame(DATA, 1, b"slowly"):
        relay.send(bytes((byte,)))
    assert server.recv(100) == b"slowly"


def test_the_largest_datagram_passes(relay: Relay, server: socket.socket) -> None:
    largest = bytes(65507)
    relay.send(frame(OPEN, 1, place(server)) + frame(DATA, 1, largest))
    data, sender = server.recvfrom(DATAGRAM_BYTES)
    assert data == largest
    server.sendto(largest, sender)
    assert relay.receive() == (DATA, 1, largest)


def test_a_closed_flow_and_a_refused_datagram_disturb_no_other(
    relay: Relay, server: socket.socket
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        nobody = place(gone)
    relay.send(frame(OPEN, 1, nobody) + frame(DATA, 1, b"lost") + frame(DATA, 1, b"lost"))
    relay.send(frame(OPEN, 2, place(server)) + frame(DATA, 2, b"first"))
    assert server.recv(100) == b"first"
    relay.send(frame(CLOSE, 2, b"") + frame(DATA, 2, b"late") + frame(CLOSE, 2, b""))
    relay.send(frame(OPEN, 3, place(server)) + frame(DATA, 3, b"second"))
    assert server.recv(100) == b"second"


@pytest.mark.parametrize("where", [b"", b"nonsense", b"127.0.0.1 x", b"127.0.0.1 99999", b"\xff 1"])
def test_a_flow_to_nowhere_is_closed(relay: Relay, where: bytes) -> None:
    relay.send(frame(OPEN, 5, where))
    assert relay.receive() == (CLOSE, 5, b"")


def test_it_ends_with_its_input(relay: Relay) -> None:
    relay.input.close()
    assert relay.process.wait(60) == 0


def test_it_ends_with_its_reader(relay: Relay, server: socket.socket) -> None:
    relay.output.close()
    assert relay.process.wait(60) == 0


def test_another_language_is_one_sentence(relay: Relay) -> None:
    relay.send(frame(9, 0, b""))
    assert relay.process.wait(60) == 1
    assert relay.process.stderr is not None
    assert relay.process.stderr.read().decode().count("\n") == 1
