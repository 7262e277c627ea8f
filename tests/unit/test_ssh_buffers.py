"""The buffers between a connection and those who read its channels."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from paramiko.buffered_pipe import PipeTimeout

from desk.ssh.channel import Incoming
from desk.ssh.packets import ReadAhead


@pytest.fixture
def wire() -> Iterator[tuple[ReadAhead, socket.socket]]:
    """The read-ahead of a connection, and the other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(60)
        yield ReadAhead(ours), theirs


def test_bytes_come_in_order_however_they_are_asked_for(
    wire: tuple[ReadAhead, socket.socket],
) -> None:
    ahead, other = wire
    data = bytes(range(256)) * 9_000  # several times what is read ahead

    def send() -> None:
        other.sendall(data)
        other.close()

    sender = threading.Thread(target=send)
    sender.start()
    got = bytearray()
    for size in [1, 16, 100_000, 70_001, 4, 130_000] * 20:
        if len(got) + size > len(data):
            break
        if size % 2:
            piece = ahead.recv(size)
        else:
            found = ahead.peek(size)
            assert found is not None
            assert len(found) == size
            piece = bytes(found)
            ahead.skip(size)
        got += piece
    while piece := ahead.recv(1 << 16):
        got += piece
    sender.join()
    assert got == data


def test_what_was_peeked_at_is_there_again_after_a_time_out(
    wire: tuple[ReadAhead, socket.socket],
) -> None:
    ahead, other = wire
    other.sendall(b"ab")
    ahead.settimeout(0.01)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            ahead.peek(4)
    other.sendall(b"cd")
    ahead.settimeout(60)
    found = ahead.peek(4)
    assert found is not None
    assert bytes(found) == b"abcd"
    assert ahead.recv(10) == b"abcd"
    other.close()
    assert ahead.peek(1) is None
    assert ahead.recv(1) == b""


def test_bytes_are_given_out_in_any_pieces() -> None:
    incoming = Incoming()
    for piece in (b"abc", b"", b"defg", b"h"):
        incoming.feed(piece)
    assert len(incoming) == 8
    assert incoming.read(5) == b"abcde"
    assert incoming.read(2) == b"fg"
    assert incoming.read_ready()
    assert incoming.empty() == b"h"
    assert not incoming.read_ready()
    with pytest.raises(PipeTimeout):
        incoming.read(1, timeout=0.0)
    incoming.feed(b"last")
    incoming.close()
    assert incoming.read(100) == b"last"
    assert incoming.read(100) == b""


def test_a_reader_is_woken_by_bytes_and_by_the_end() -> None:
    incoming = Incoming()
    got: list[bytes] = []

    def read() -> None:
        while piece := incoming.read(10):
            got.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    incoming.feed(b"one")
    incoming.close()
    reader.join(60)
    assert not reader.is_alive()
    assert b"".join(got) == b"one"


def test_an_event_tells_whether_there_is_something() -> None:
    incoming, event = Incoming(), threading.Event()
    event.set()
    incoming.set_event(event)
    assert not event.is_set()
    incoming.feed(b"ab")
    assert event.is_set()
    incoming.read(1)
    assert event.is_set()
    incoming.read(1)
    assert not event.is_set()
    incoming.close()
    assert event.is_set()
