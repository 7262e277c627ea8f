"""The agent's UDP ports: a client's way through the machine ends after a while of silence."""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import Any

import pytest

from desk.agent import datagrams
from desk.agent.datagrams import GREETING, Datagrams

OPEN, DATA, CLOSE = 1, 2, 3


class MachineSide:
    """The machine's relaying command, and the link to it: greets, and keeps what it is sent."""

    def __init__(self) -> None:
        self.received = b""
        self._greeting = GREETING
        self._ended = threading.Event()

    def session(self, timeout_s: float, *, urgent: bool) -> MachineSide:
        return self

    def open_exec(self, command: str) -> MachineSide:
        return self

    def recv(self, size: int) -> bytes:
        if not self._greeting:
            self._ended.wait()
        piece, self._greeting = self._greeting[:size], self._greeting[size:]
        return piece

    def recv_exactly(self, size: int) -> bytes:
        return self.recv(size)  # the greeting comes in one piece

    def sendall(self, data: bytes) -> None:
        self.received += data

    def close(self) -> None:
        self._ended.set()

    def frames(self) -> list[tuple[int, int, bytes]]:
        """Return kind, flow and content of what came."""
        found, rest = [], self.received
        while rest:
            kind, flow, length = struct.unpack_from("!BIH", rest)
            found.append((kind, flow, rest[7 : 7 + length]))
            rest = rest[7 + length :]
        return found


def test_a_silent_flow_is_closed_and_its_client_gets_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datagrams, "IDLE_S", 0.0)
    monkeypatch.setattr(datagrams, "_PRUNE_S", 0.02)
    machine = MachineSide()
    link: Any = machine
    relay = Datagrams(link, "relay")
    relay.start()
    try:
        port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        port.bind(("127.0.0.1", 0))
        address = port.getsockname()
        relay.add(port, "127.0.0.1", 53)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(address)
            for ended in (1, 2):
                deadline = time.monotonic() + 20
                while [kind for kind, _, _ in machine.frames()].count(CLOSE) < ended:
                    assert time.monotonic() < deadline, machine.frames()
                    client.send(b"?")
                    time.sleep(0.2)
        for number in (1, 2):
            frames = [(kind, content) for kind, flow, content in machine.frames() if flow == number]
            assert frames[0] == (OPEN, b"127.0.0.1 53")
            assert frames[-1] == (CLOSE, b"")
            assert set(frames[1:-1]) == {(DATA, b"?")}
    finally:
        relay.close()
