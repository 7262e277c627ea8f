"""Print what Desk's SSH layer carries beside OpenSSH's ``ssh -L``, over one loopback sshd.

``python -m tests.bench.bench_ssh [--megabytes N] [--rounds N]``

Each line: Desk's figure, OpenSSH's figure, and Desk's as a ratio of OpenSSH's. Rounds alternate
between the two; the median counts. Throughput is measured with one stream and with four, requests
over eight connections that stay (a hundred bytes and an answer of a kilobyte, one after the other)
and over a connection each, latency as the time from ``connect`` to the first byte of an answer.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from desk.agent.acceptor import Acceptor
from desk.ssh.endpoint import Endpoint
from desk.ssh.session import Session
from tests.free_ports import free_port
from tests.ssh_server import SshServer

_BLOCK = bytes(1 << 18)
_REQUEST_BYTES = 100
_ANSWER = bytes(1000)


class Peer:
    """The server behind the forwarded port: the first byte of a connection says what it does.

    ``d`` and a size: sends that much. ``u``: reads to the end, then sends one byte. ``r``: answers
    each request of 100 bytes. ``e``: sends one byte.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            order = connection.recv(9)
            if order[:1] == b"d":
                left = int.from_bytes(order[1:], "big")
                while left > 0:
                    left -= connection.send(_BLOCK[: min(left, len(_BLOCK))])
            elif order[:1] == b"u":
                buffer = bytearray(1 << 18)
                while connection.recv_into(buffer):
                    pass
                connection.sendall(b"!")
            elif order[:1] == b"r":
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while len(connection.recv(_REQUEST_BYTES, socket.MSG_WAITALL)) == _REQUEST_BYTES:
                    connection.sendall(_ANSWER)
            else:
                connection.sendall(b"!")

    def close(self) -> None:
        self._listener.close()


def download(port: int, size_bytes: int) -> float:
    """Return the seconds that it takes to receive ``size_bytes``."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        started = time.perf_counter()
        connection.sendall(b"d" + size_bytes.to_bytes(8, "big"))
        buffer, received = bytearray(1 << 20), 0
        while count := connection.recv_into(buffer):
            received += count
        assert received == size_bytes
        return time.perf_counter() - started


def upload(port: int, size_bytes: int) -> float:
    """Return the seconds that it takes until the other side has read ``size_bytes``."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        started = time.perf_counter()
        connection.sendall(b"u" + bytes(8))
        left = size_bytes
        while left > 0:
            left -= connection.send(_BLOCK[: min(left, len(_BLOCK))])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"!"
        return time.perf_counter() - started


def four_downloads(port: int, size_bytes: int) -> float:
    """Return the seconds that it takes to receive ``size_bytes`` over four connections."""
    return _in_threads(
        [threading.Thread(target=download, args=(port, size_bytes // 4)) for _ in range(4)]
    )


def requests(port: int, count: int) -> float:
    """Return the seconds that as many requests take over eight connections that stay."""

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(b"r" + bytes(8))
            for _ in range(count // 8):
                connection.sendall(bytes(_REQUEST_BYTES))
                answer = connection.recv(len(_ANSWER), socket.MSG_WAITALL)
                assert len(answer) == len(_ANSWER)

    return _in_threads([threading.Thread(target=ask) for _ in range(8)])


def connections(port: int, count: int) -> float:
    """Return the seconds that as many requests take over a connection each, eight at a time."""

    def ask() -> None:
        for _ in range(count // 8):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"e")
                assert connection.recv(1) == b"!"

    return _in_threads([threading.Thread(target=ask) for _ in range(8)])


def _in_threads(threads: list[threading.Thread]) -> float:
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def first_byte(port: int, _size_bytes: int) -> float:
    """Return the mean seconds from ``connect`` to the first byte, of 50 connections."""
    count = 50
    started = time.perf_counter()
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"e")
            assert connection.recv(1) == b"!"
    return (time.perf_counter() - started) / count


@contextlib.contextmanager
def in_process(function: Callable[..., None], *arguments: object) -> Iterator[int]:
    """Run ``function(pipe, …)`` in a process of its own; yield the port that it sends."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=function, args=(theirs, *arguments))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join()


def serve_peer(pipe: Connection[int, None]) -> None:
    peer = Peer()
    pipe.send(peer.port)
    pipe.recv()
    peer.close()


def serve_desk(pipe: Connection[int, None], endpoint: Endpoint, target: int) -> None:
    """Forward a local port to ``target`` as the agent does."""
    session = Session.connect(endpoint)
    session.run("true")  # as the agent begins; see openssh_forward
    acceptor = Acceptor()
    acceptor.start()
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve(local: socket.socket, ended: Callable[[], None]) -> None:
        session.relay_tcp(
            local, "127.0.0.1", target, opened=lambda: None,
            refused=lambda error: sys.exit(error.text), ended=ended,
        )  # fmt: skip

    acceptor.add(listener, serve)
    pipe.send(listener.getsockname()[1])
    pipe.recv()
    acceptor.close()
    session.close()


@contextlib.contextmanager
def openssh_forward(server: SshServer, target: int) -> Iterator[int]:
    """Forward a local port to ``target`` with ``ssh -L``; yield the local port.

    It runs a command, too, and not ``-N``: only with a command does sshd send small packets at
    once, without which a short connection may wait for a late acknowledgement.
    """
    port, endpoint = free_port(), server.endpoint
    process = subprocess.Popen(
        [
            *("ssh", "-F", "none", "-i", str(endpoint.private_key)),
            *("-o", f"UserKnownHostsFile={endpoint.known_hosts}", "-o", "IdentitiesOnly=yes"),
            *("-o", "ExitOnForwardFailure=yes", "-p", str(endpoint.port)),
            *("-L", f"127.0.0.1:{port}:127.0.0.1:{target}", f"{endpoint.user}@{endpoint.host}"),
            "read nothing",
        ],
        stdin=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline, "ssh -L does not come up"
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.communicate()


def _print_rates(
    name: str,
    unit: str,
    measure: Callable[[int, int], float],
    ports: tuple[int, int],
    amount: int,
    rounds: int,
) -> None:
    """Print how much of ``amount`` is done in a second by Desk and by OpenSSH."""
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for port, results in zip(ports, rates, strict=True):
            results.append(amount / measure(port, amount))
    ours, theirs = (statistics.median(results) for results in rates)
    scale = 1e6 if unit == "MB/s" else 1
    print(
        f"{name:24} desk {ours / scale:7.1f} {unit:5}  ssh -L {theirs / scale:7.1f} {unit:5}  "
        f"{ours / theirs:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    size_bytes = arguments.megabytes * 1_000_000
    with (
        tempfile.TemporaryDirectory() as directory,
        SshServer(Path(directory)) as server,
        in_process(serve_peer) as target,
        in_process(serve_desk, server.endpoint, target) as desk,
        openssh_forward(server, target) as openssh,
    ):
        for name, measure in (
            ("download", download),
            ("download, 4 streams", four_downloads),
            ("upload", upload),
        ):
            _print_rates(name, "MB/s", measure, (desk, openssh), size_bytes, arguments.rounds)
        for name, ask, count in (("requests", requests, 16_000), ("connections", connections, 800)):
            _print_rates(name, "1/s", ask, (desk, openssh), count, arguments.rounds)
        latencies: tuple[list[float], list[float]] = ([], [])
        for _ in range(arguments.rounds):
            latencies[0].append(first_byte(desk, 0) * 1e3)
            latencies[1].append(first_byte(openssh, 0) * 1e3)
        ours, theirs = (statistics.median(results) for results in latencies)
        print(
            f"{'connect to first byte':24} desk {ours:7.2f} ms     ssh -L {theirs:7.2f} ms     "
            f"{ours / theirs:.2f}"
        )


if __name__ == "__main__":
    main()
