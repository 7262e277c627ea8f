"""How the client reaches an engine: a Unix socket, TCP, or a channel that someone else opens.

Named tuples, because every command imports this: each data class costs half a millisecond.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from desk.errors import EngineUnreachable, UsageError


class Connection(Protocol):
    """A byte stream to the engine; sockets and paramiko channels both are one.

    ``close`` and ``shutdown`` may be called from another thread than the one that reads, and
    wake it.
    """

    def sendall(self, data: bytes, /) -> object: ...
    def recv(self, size: int, /) -> bytes: ...
    def settimeout(self, timeout_s: float | None, /) -> object: ...
    def shutdown(self, how: int, /) -> object: ...
    def close(self) -> object: ...
    def fileno(self) -> int: ...


class Transport(Protocol):
    """Opens connections to one engine; may be called from any thread."""

    @property
    def url(self) -> str:
        """The engine's address as ``DOCKER_HOST`` spells it; error messages quote it."""

    def connect(self, timeout_s: float) -> Connection:
        """Return a new connection, or raise ``EngineUnreachable``."""


def _unreachable(url: str, error: OSError) -> EngineUnreachable:
    reason = error.strerror or str(error)
    return EngineUnreachable(f"cannot reach the engine at {url}: {reason}")


class UnixTransport(NamedTuple):
    """The engine's Unix socket, which the machine's agent (or the engine itself) serves."""

    path: Path

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def connect(self, timeout_s: float) -> Connection:
        if sys.platform == "win32":
            raise UsageError(
                f"{self.url}: Unix sockets are not available on this system",
                hint="Use a tcp:// address.",
            )
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(str(self.path))
        except OSError as error:
            connection.close()
            raise _unreachable(self.url, error) from error
        return connection


class TcpTransport(NamedTuple):
    """An engine that listens on TCP without TLS."""

    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"

    def connect(self, timeout_s: float) -> Connection:
        try:
            connection = socket.create_connection((self.host, self.port), timeout_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise _unreachable(self.url, error) from error
        return connection


class ChannelTransport(NamedTuple):
    """Connections that ``open_channel`` makes, such as channels of one SSH connection."""

    url: str
    open_channel: Callable[[float], Connection]

    def connect(self, timeout_s: float) -> Connection:
        try:
            return self.open_channel(timeout_s)
        except OSError as error:
            raise _unreachable(self.url, error) from error


def transport_for(url: str) -> UnixTransport | TcpTransport:
    """Return the transport for an address in ``DOCKER_HOST``'s form; ``UsageError`` otherwise."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "tcp", url
    if scheme == "unix":
        if not rest.startswith("/"):
            raise UsageError(
                f"invalid engine address {url!r}: the socket's path is not absolute",
                hint="Write it as unix:///path/to/engine.sock.",
            )
        return UnixTransport(Path(rest))
    if scheme in ("tcp", "http"):
        return _tcp_transport(url, rest.partition("/")[0])
    raise UsageError(
        f"invalid engine address {url!r}: {scheme}:// is not supported",
        hint="Use unix:///path/to/engine.sock or tcp://HOST:PORT.",
    )


def _tcp_transport(url: str, authority: str) -> TcpTransport:
    host, _, port_text = authority.rpartition(":")
    if authority.endswith("]") or not host:
        host, port_text = authority.strip(":"), "2375"
    if not port_text.isdecimal() or not 0 < int(port_text) < 65536:
        raise UsageError(
            f"invalid engine address {url!r}: {port_text!r} is not a port",
            hint="Use tcp://HOST:PORT with a port from 1 to 65535.",
        )
    return TcpTransport(host.strip("[]") or "127.0.0.1", int(port_text))
