"""Host ports of published container ports: chosen, checked against the machine, and held.

A port is held by a socket that is bound to it and does not listen: nothing else on the machine
can take it, while the connections themselves are redirected to the container before they would
reach a socket.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address

from deskd.domain.container import PortBinding
from deskd.domain.network import PortRequest
from deskd.errors import InvalidArgument, ResourceExhausted, SystemFailure
from deskd.network.firewall import ANY, Publication

RANDOM_PORTS = range(32768, 61000)
"""Where a port comes from that nobody chose, as in Docker (the kernel's ephemeral range)."""

PROTOCOLS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_SEQPACKET, socket.IPPROTO_SCTP),
}

Key = tuple[str, IPv4Address, int]


def parse_host_ports(text: str) -> range | None:
    """Read ``8080`` or ``8000-8010``; None means any port. Raises ``InvalidArgument``."""
    if text in ("", "0"):
        return None
    first, dash, last = text.partition("-")
    if not (first.isascii() and first.isdigit()) or (
        dash and not (last.isascii() and last.isdigit())
    ):
        raise InvalidArgument(f"invalid host port {text!r}: write 8080 or 8000-8010")
    ports = range(int(first), int(last or first) + 1)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise InvalidArgument(f"invalid host port {text!r}: ports lie between 1 and 65535")
    return ports


def parse_host_address(text: str, default: IPv4Address = ANY) -> IPv4Address | None:
    """Read a binding's address; None for an IPv6 one, which IPv4 networks do not publish."""
    if not text:
        return default
    if ":" in text:
        try:
            socket.inet_pton(socket.AF_INET6, text.strip("[]"))
        except OSError as error:
            raise InvalidArgument(
                f"invalid host address {text!r}: it is not an IP address"
            ) from error
        return None
    try:
        return IPv4Address(text)
    except ValueError as error:
        raise InvalidArgument(f"invalid host address {text!r}: it is not an IP address") from error


class HostPorts:
    """The ports that this engine holds. Not shared by threads."""

    def __init__(self) -> None:
        self._held: dict[Key, socket.socket | None] = {}
        self._next_random = 0

    def hold_all(
        self, requests: Sequence[PortRequest], target: IPv4Address, default: IPv4Address = ANY
    ) -> list[Publication]:
        """Hold a port for every binding, or none of them.

        ``default`` is the address of bindings that name none. Raises ``ResourceExhausted`` with
        Docker's words for a port that is taken.
        """
        publications: list[Publication] = []
        with contextlib.ExitStack() as undo:
            for request in requests:
                if request.protocol not in PROTOCOLS or not 1 <= request.container_port <= 65535:
                    raise InvalidArgument(
                        f"invalid container port {request.container_port}/{request.protocol}: "
                        "use a port between 1 and 65535 with tcp, udp or sctp"
                    )
                for binding in request.bindings:
                    publication = self._hold_one(request, binding, target, default)
                    if publication is not None:
                        undo.callback(self.release, [publication])
                        publications.append(publication)
            undo.pop_all()
        return publications

    def hold(self, publication: Publication) -> bool:
        """Hold exactly this port again; False where somebody else has it."""
        return self._try(publication.protocol, publication.host_address, publication.host_port)

    def release(self, publications: Sequence[Publication]) -> None:
        """Let go of ports; idempotent."""
        for publication in publications:
            held = self._held.pop(
                (publication.protocol, publication.host_address, publication.host_port), None
            )
            if held is not None:
                held.close()

    def close(self) -> None:
        """Let go of every port."""
        for held in self._held.values():
            if held is not None:
                held.close()
        self._held.clear()

    def _hold_one(
        self,
        request: PortRequest,
        binding: PortBinding,
        target: IPv4Address,
        default: IPv4Address,
    ) -> Publication | None:
        address = parse_host_address(binding.host_ip, default)
        if address is None:
            return None
        wanted = parse_host_ports(binding.host_port)
        candidates: Sequence[int] = wanted if wanted is not None else self._random_order()
        for port in candidates:
            if self._try(request.protocol, address, port):
                return Publication(request.protocol, address, port, target, request.container_port)
        if wanted is None:
            raise ResourceExhausted(
                f"no port between {RANDOM_PORTS[0]} and {RANDOM_PORTS[-1]} is free on {address}: "
                "stop what uses them"
            )
        which = f"{address}:{binding.host_port}"
        raise ResourceExhausted(f"Bind for {which} failed: port is already allocated")

    def _random_order(self) -> Sequence[int]:
        start = self._next_random
        order = [*RANDOM_PORTS[start:], *RANDOM_PORTS[:start]]
        self._next_random = (start + 1) % len(RANDOM_PORTS)
        return order

    def _try(self, protocol: str, address: IPv4Address, port: int) -> bool:
        key = (protocol, address, port)
        if key in self._held:
            return False
        try:
            held = _bind(protocol, address, port)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE,):
                return False
            where = f"{address}:{port}/{protocol}"
            if error.errno == errno.EADDRNOTAVAIL:
                raise ResourceExhausted(
                    f"failed to bind host port {where}: cannot assign requested address; use an "
                    "address of this machine or leave it out"
                ) from error
            raise SystemFailure(f"failed to bind host port {where}: {error.strerror}") from error
        self._held[key] = held
        return True


def _bind(protocol: str, address: IPv4Address, port: int) -> socket.socket | None:
    kind, number = PROTOCOLS[protocol]
    try:
        held = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC, number)
    except OSError as error:
        if protocol == "sctp" and error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return None  # a machine without SCTP has nobody who could take the port
        raise
    try:
        if protocol == "tcp":
            _hold_tcp(held, address, port)
        else:
            held.bind((str(address), port))
    except BaseException:
        held.close()
        raise
    return held


def _hold_tcp(held: socket.socket, address: IPv4Address, port: int) -> None:
    """Bind for good without listening.

    SO_REUSEADDR lets connections in TIME_WAIT not count as a use of the port; with it, only
    ``listen`` finds out about another holder. Afterwards the socket stops listening (a stray
    connection is refused rather than left hanging) and no longer shares its address.
    """
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((str(address), port))
    held.listen(1)
    held.shutdown(socket.SHUT_RD)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
