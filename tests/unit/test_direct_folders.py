"""Connections that QEMU takes for shared folders, from its program to the agent."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from desk.agent.acceptor import Acceptor
from desk.agent.direct_folders import DirectFolders, door_program, folders_secret
from desk.ssh.endpoint import Endpoint


def echo(connection: socket.socket) -> None:
    while data := connection.recv(4096):
        connection.sendall(data.upper())


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="desk-") as name:
        yield Path(name, "folders.sock")


@pytest.fixture
def acceptor(place: Path) -> Iterator[Acceptor]:
    acceptor = Acceptor()
    acceptor.start()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen()
    acceptor.add(listener, DirectFolders(echo).handle)
    yield acceptor
    acceptor.close()


def open_door(place: Path, guest: socket.socket) -> subprocess.CompletedProcess[bytes]:
    """Start the program as QEMU does: the connection is its three streams."""
    number = guest.fileno()
    argv = [sys.executable, "-I", str(door_program()), str(place)]
    return subprocess.run(argv, stdin=number, stdout=number, stderr=number, timeout=60)


def test_the_agent_gets_the_connection_itself(place: Path, acceptor: Acceptor) -> None:
    ours, guest = socket.socketpair()
    with ours:
        with guest:
            assert open_door(place, guest).returncode == 0
        ours.settimeout(60)
        ours.sendall(b"hello")
        assert ours.recv(5) == b"HELLO"
        assert acceptor.connections == 1
        ours.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""


def test_without_an_agent_the_connection_ends_in_silence(place: Path) -> None:
    ours, guest = socket.socketpair()
    with ours:
        with guest:
            assert open_door(place, guest).returncode == 1
        assert ours.recv(100) == b""


def test_a_door_that_brings_nothing_is_closed(place: Path, acceptor: Acceptor) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(60)
        door.connect(str(place))
        door.sendall(b"x")
        assert door.recv(1) == b""


def test_each_machine_has_a_secret_that_stays(tmp_path: Path) -> None:
    def secret(key: bytes) -> str:
        (tmp_path / "key").write_bytes(key)
        return folders_secret(Endpoint("h", 22, "u", tmp_path / "key", tmp_path / "known"))

    assert secret(b"one") == secret(b"one") != secret(b"other")
    assert len(secret(b"one")) == 32
