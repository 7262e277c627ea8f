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
from ipaddress import ip_address

from deskd.domain.container import PortBinding
from deskd.domain.network import PortRequest
from deskd.errors import InvalidArgument, ResourceExhausted, SystemFailure
from deskd.network.firewall import ANY, ANY_IPV6, Publication
from deskd.network.ipam import Address
from deskd.record import Record

RANDOM_PORTS = range(32768, 61000)
"""Where a port comes from that nobody chose, as in Docker (the kernel's ephemeral range)."""

PROTOCOLS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_SEQPACKET, socket.IPPROTO_SCTP),
}

_BACKLOG = 128

Key = tuple[str, Address, int]


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


def parse_host_address(text: str) -> Address:
    """Read a binding's address. Raises ``InvalidArgument``."""
    try:
        return ip_address(text.strip("[]"))
    except ValueError as error:
        raise InvalidArgument(f"invalid host address {text!r}: it is not an IP address") from error


class Target(Record):
    """Where a container's ports lead: its addresses in a network, and where they are published
    unless a binding says so."""

    ipv4: Address | None = None
    ipv6: Address | None = None
    default: Address = ANY

    def places(self, host_ip: str, protocol: str) -> list[tuple[Address, Address]]:
        """Return pairs of the machine's and the container's address for one binding.

        Without an address of its own it is published in every family that the container has, and
        in IPv6 always where the machine has that. One in a family that the container lacks leads
        to the other address, by a relay, which SCTP has not.
        """
        if host_ip:
            address = parse_host_address(host_ip)
        elif self.default == ANY:
            by_relay = self.ipv4 if protocol != "sctp" and _has_ipv6() else None
            pairs = ((ANY, self.ipv4), (ANY_IPV6, self.ipv6 or by_relay))
            return [(machine, own) for machine, own in pairs if own is not None]
        else:
            address = self.default
        own = self.ipv6 if address.version == 6 else self.ipv4
        own = own or self.ipv4 or self.ipv6
        assert own is not None
        return [(address, own)]


class HostPorts:
    """The ports that this engine holds. Not shared by threads."""

    def __init__(self) -> None:
        self._held: dict[Key, socket.socket | None] = {}
        self._next_random = 0

    def hold_all(self, requests: Sequence[PortRequest], target: Target) -> list[Publication]:
        """Hold a port for every binding, or none of them.

        Raises ``ResourceExhausted`` with Docker's words for a port that is taken.
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
                    held = self._hold_one(request, binding, target)
                    undo.callback(self.release, held)
                    publications += held
            undo.pop_all()
        return publications

    def hold(self, publication: Publication) -> bool:
        """Hold exactly this port; False where somebody else has it."""
        key = _key(publication)
        if key in self._held:
            return False
        try:
            held = _bind(publication)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            protocol, address, port = key
            where = f"{f'[{address}]' if address.version == 6 else address}:{port}/{protocol}"
            if error.errno == errno.EADDRNOTAVAIL:
                raise ResourceExhausted(
                    f"failed to bind host port {where}: cannot assign requested address; use an "
                    "address of this machine or leave it out"
                ) from error
            raise SystemFailure(f"failed to bind host port {where}: {error.strerror}") from error
        self._held[key] = held
        return True

    def release(self, publications: Sequence[Publication]) -> None:
        """Let go of ports; idempotent."""
        for publication in publications:
            held = self._held.pop(_key(publication), None)
            if held is not None:
                held.close()

    def close(self) -> None:
        """Let go of every port."""
        for held in self._held.values():
            if held is not None:
                held.close()
        self._held.clear()

    def listener(self, publication: Publication) -> socket.socket | None:
        """Return the socket of a relayed publication; one for TCP listens."""
        return self._held.get(_key(publication)) if publication.is_relayed else None

    def _hold_one(
        self, request: PortRequest, binding: PortBinding, target: Target
    ) -> list[Publication]:
        places = target.places(binding.host_ip, request.protocol)
        wanted = parse_host_ports(binding.host_port)
        candidates: Sequence[int] = wanted if wanted is not None else self._random_order()
        for port in candidates:
            publications = [
                Publication(request.protocol, machine, port, own, request.container_port)
                for machine, own in places
            ]
            _check_reachable(publications)
            if self._hold_together(publications):
                return publications
        where = " and ".join(str(machine) for machine, _ in places)
        if wanted is None:
            raise ResourceExhausted(
                f"no port between {RANDOM_PORTS[0]} and {RANDOM_PORTS[-1]} is free on {where}: "
                "stop what uses them"
            )
        first = places[0][0]
        which = f"{f'[{first}]' if first.version == 6 else first}:{binding.host_port}"
        raise ResourceExhausted(f"Bind for {which} failed: port is already allocated")

    def _hold_together(self, publications: Sequence[Publication]) -> bool:
        for number, publication in enumerate(publications):
            if not self.hold(publication):
                self.release(publications[:number])
                return False
        return True

    def _random_order(self) -> Sequence[int]:
        start = self._next_random
        order = [*RANDOM_PORTS[start:], *RANDOM_PORTS[:start]]
        self._next_random = (start + 1) % len(RANDOM_PORTS)
        return order


def _has_ipv6() -> bool:
    """Tell whether a socket of this network namespace may have an IPv6 address."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _key(publication: Publication) -> Key:
    return publication.protocol, publication.host_address, publication.host_port


def _check_reachable(publications: Sequence[Publication]) -> None:
    """Raise ``InvalidArgument`` for what neither the firewall nor a relay carries."""
    for item in publications:
        if not item.is_translated and not item.is_relayed:
            raise InvalidArgument(
                f"the port {item.container_port}/{item.protocol} cannot be published on "
                f"{item.host_address}: only TCP and UDP are there, because the container's address "
                f"is {item.container_address}; leave the address out"
            )


def _bind(publication: Publication) -> socket.socket | None:
    protocol, address, port = _key(publication)
    kind, number = PROTOCOLS[protocol]
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        held = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
    except OSError as error:
        if protocol == "sctp" and error.errno in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            return None  # a machine without SCTP has nobody who could take the port
        raise
    try:
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol == "tcp":
            _hold_tcp(held, address, port, relayed=publication.is_relayed)
        else:
            held.bind((str(address), port))
    except BaseException:
        held.close()
        raise
    return held


def _hold_tcp(held: socket.socket, address: Address, port: int, *, relayed: bool) -> None:
    """Bind for good, and listen only where connections are relayed.

    SO_REUSEADDR lets connections in TIME_WAIT not count as a use of the port; with it, only
    ``listen`` finds out about another holder. Afterwards the socket stops listening (a stray
    connection is refused rather than left hanging) and no longer shares its address.
    """
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((str(address), port))
    if relayed:
        held.setblocking(False)
        held.listen(_BACKLOG)
        return
    held.listen(1)
    held.shutdown(socket.SHUT_RD)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
