"""``deskd dial-stdio``, which the agent starts where sshd cannot open the engine's socket."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[socket.socket]:
    """A listener in the engine's place."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "e.sock"))
        listener.listen()
        listener.settimeout(60)
        yield listener


def _dial(engine: socket.socket) -> tuple[subprocess.Popen[bytes], socket.socket]:
    process = subprocess.Popen(
        [sys.executable, "-m", "deskd", "dial-stdio", "--host", f"unix://{engine.getsockname()}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    connection, _ = engine.accept()
    connection.settimeout(60)
    return process, connection


def test_the_end_of_input_leaves_the_answer_alone(engine: socket.socket) -> None:
    process, connection = _dial(engine)
    with connection:
        assert process.stdin is not None
        process.stdin.write(b"question")
        process.stdin.close()
        assert connection.recv(100) == b"question"
        assert connection.recv(100) == b""
        connection.sendall(b"answer")
    with process:
        assert process.stdout is not None
        assert process.stdout.read() == b"answer"
    assert process.returncode == 0


def test_a_vanished_reader_ends_it_though_the_engine_is_silent(engine: socket.socket) -> None:
    process, connection = _dial(engine)
    with connection:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        assert connection.recv(1) == b""
        assert process.poll() is None
        process.stdout.close()
        assert process.wait(60) == 0


def test_no_engine_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deskd", "dial-stdio", "--host", f"unix://{tmp_path}/none"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/none" in done.stderr
