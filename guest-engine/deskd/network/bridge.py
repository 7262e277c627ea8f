"""Bridges and the veth pairs on them: what the engine makes in the kernel, and finds there again.

Everything an engine makes carries its mark, so that several engines with different data roots
share one Linux: bridges have the alias ``desk ENGINE NETWORK``, veth pairs sit on those bridges.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from ipaddress import ip_network
from pathlib import Path

import msgspec

from deskd.domain.network import NetlinkScript
from deskd.errors import Conflict, SystemFailure, Unavailable, Unsupported
from deskd.kernel import netlink
from deskd.layout import DEFAULT_DATA_ROOT
from deskd.network.ipam import Address, Subnet, SubnetPlan

LOCK_NAME = "\0desk-networks"
LOCK_TIMEOUT_S = 20.0
LOCK_RETRY_S = 0.005
FIRST_HOST_INDEX = 1 << 28
"""Interface indices of host ends are this plus the endpoint's 28 bits: far above the kernel's own,
which count up from 1."""
FIRST_BRIDGE_INDEX = 1 << 27
"""Interface indices of bridges and parents are this plus 27 bits of the network's ID."""
FIRST_PEER_INDEX = 100
"""``eth0`` in a container has this index: above fallback tunnels, which some kernels make in
every new namespace."""

IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"
IPV6_SETTINGS = "/proc/sys/net/ipv6"
"""Exists where the kernel has IPv6 and it is not switched off."""


class EngineNames(msgspec.Struct, frozen=True):
    """Names that belong to the engine with one data root."""

    engine: str
    default_bridge: str

    @classmethod
    def for_data_root(cls, data_root: str, bridge: str = "") -> EngineNames:
        """Derive the names; ``bridge`` overrides the default bridge's."""
        digest = hashlib.sha256(os.path.realpath(data_root).encode()).hexdigest()[:8]
        if not bridge:
            is_default = os.path.realpath(data_root) == DEFAULT_DATA_ROOT
            bridge = "desk0" if is_default else f"desk{digest}"
        return cls(digest, bridge)

    @property
    def table(self) -> str:
        """The engine's nftables table."""
        return f"desk_{self.engine}"

    def alias(self, network_id: str = "") -> str:
        """The mark of a bridge; without a network the start of all this engine's marks."""
        return f"desk {self.engine} {network_id}"


class BridgeSpec(msgspec.Struct, frozen=True):
    """A bridge as it should be."""

    name: str
    network_id: str
    plans: tuple[SubnetPlan, ...]
    mtu: int = 0
    inter_container: bool = True


class Machine(msgspec.Struct, frozen=True):
    """What networks the machine has, read at one moment."""

    links: tuple[netlink.Link, ...]
    addresses: tuple[tuple[int, netlink.IpAddress, int], ...]
    routes: tuple[tuple[int, netlink.IpNetwork], ...]

    @classmethod
    def read(cls, route: netlink.RouteSocket) -> Machine:
        """Read it from the kernel."""
        return cls(tuple(route.links()), tuple(route.addresses()), tuple(route.routes()))

    def link(self, name: str) -> netlink.Link | None:
        """Return the interface with this name."""
        return next((link for link in self.links if link.name == name), None)

    def addresses_of(self, index: int) -> list[tuple[Address, int]]:
        """Return an interface's addresses with their prefix lengths, link-local IPv6 ones left
        out: the kernel makes them."""
        return [
            (address, length)
            for owner, address, length in self.addresses
            if owner == index and not _is_the_kernels(address)
        ]

    def subnets(self, *, without: Collection[str] = ()) -> list[Subnet]:
        """Return every subnet that the machine routes or has an address in, except those of the
        interfaces named in ``without``."""
        skipped = {link.index for link in self.links if link.name in without}
        found = {network for index, network in self.routes if index not in skipped}
        for index, address, length in self.addresses:
            if index not in skipped:
                found.add(ip_network(f"{address}/{length}", strict=False))
        return list(found)


def _is_the_kernels(address: Address) -> bool:
    return address.version == 6 and address.is_link_local


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Let one engine at a time choose subnets and make bridges in this network namespace.

    The lock is an abstract socket address: it belongs to the namespace and dies with its holder.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as lock:
        while True:
            try:
                lock.bind(LOCK_NAME)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"another engine on this machine has been changing its networks for "
                        f"{LOCK_TIMEOUT_S:.0f} s: end it and try again"
                    ) from error
            time.sleep(LOCK_RETRY_S)
        yield


def enable_forwarding() -> None:
    """Let the machine route between containers and the outside (net.ipv4.ip_forward)."""
    try:
        if Path(IP_FORWARD).read_text(encoding="ascii").strip() == "1":
            return
        Path(IP_FORWARD).write_text("1", encoding="ascii")
    except OSError as error:
        raise SystemFailure(
            f"IPv4 forwarding cannot be switched on ({IP_FORWARD}: {error.strerror}): run "
            "`sysctl -w net.ipv4.ip_forward=1`, or use --network host"
        ) from error


def enable_ipv6_forwarding() -> None:
    """Let the machine route IPv6, too.

    A kernel that forwards takes no more router advertisements (accept_ra 1) and forgets the routes
    that it has from them; with 2 it goes on. So a laptop keeps its own IPv6.
    """
    settings = Path(IPV6_SETTINGS, "conf")
    if not settings.is_dir():
        raise Unsupported(
            "the kernel has no IPv6: leave --ipv6 out, or use a kernel with CONFIG_IPV6 that was "
            "not started with ipv6.disable=1"
        )
    try:
        if (settings / "all/forwarding").read_text(encoding="ascii").strip() == "1":
            return
        for accepting in settings.glob("*/accept_ra"):
            if accepting.read_text(encoding="ascii").strip() == "1":
                accepting.write_text("2", encoding="ascii")
        (settings / "all/forwarding").write_text("1", encoding="ascii")
    except OSError as error:
        raise SystemFailure(
            f"IPv6 forwarding cannot be switched on ({settings}: {error.strerror}): run "
            "`sysctl -w net.ipv6.conf.all.forwarding=1`, or leave --ipv6 out"
        ) from error


def link_index(network_id: str) -> int:
    """Return the index of the bridge or parent that is made for a network. It is known before the
    interface is there, and nobody else's has it."""
    return FIRST_BRIDGE_INDEX + (int(network_id[:7], 16) >> 1)


def ensure_bridge(
    route: netlink.RouteSocket, machine: Machine, names: EngineNames, spec: BridgeSpec
) -> int:
    """Make the bridge, or make the one that is there as it should be; return its index.

    A bridge that somebody else made is used as it is and never marked. On an error a bridge that
    this call made is gone again.
    """
    link = machine.link(spec.name)
    if link is not None and link.kind != "bridge":
        raise Conflict(
            f"the bridge {spec.name} cannot be made: an interface of that name exists and is no "
            "bridge; give the network another bridge name"
        )
    with contextlib.ExitStack() as undo:
        if link is None:
            mac = "02:42:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(4))
            index = link_index(spec.network_id)
            # One request: a bridge of an engine that was killed before the mark would be nobody's.
            route.request(
                netlink.create_bridge(spec.name, mac, spec.mtu, index=index),
                netlink.set_alias(index, names.alias(spec.network_id)),
            )
            undo.callback(route.request, netlink.delete_link(spec.name))
            present = []
        else:
            index = link.index
            present = machine.addresses_of(index)
            if not link.up:
                route.request(netlink.set_up(index))
        wanted = [(plan.gateway, plan.subnet.prefixlen) for plan in spec.plans]
        if any(address.version == 6 for address, _ in wanted):
            _write_setting(f"{IPV6_SETTINGS}/conf/{spec.name}/accept_ra", "0")
            _write_setting(f"{IPV6_SETTINGS}/conf/{spec.name}/disable_ipv6", "0")
        for item in wanted:
            if item not in present:
                route.request(netlink.add_address(index, *item))
        if link is not None and link.alias.startswith(names.alias()):
            for address, length in present:
                if (address, length) not in wanted:
                    route.request(netlink.delete_address(index, address, length))
        _allow_loopback(spec.name)
        if not spec.inter_container or link is not None:
            _answer_for_isolated(spec.name, answer=not spec.inter_container)
        undo.pop_all()
    return index


def _allow_loopback(name: str) -> None:
    """Let packets from 127.0.0.0/8 leave by the bridge: published ports on 127.0.0.1."""
    path = Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet")
    try:
        path.write_text("1", encoding="ascii")
    except OSError as error:
        raise SystemFailure(
            f"ports cannot be published on 127.0.0.1 ({path}: {error.strerror}): mount /proc/sys "
            "writable for deskd"
        ) from error


def _answer_for_isolated(name: str, *, answer: bool) -> None:
    """Let the machine answer for all containers of a bridge whose ports are isolated from each
    other: their packets then come to be routed, and the firewall decides."""
    path = Path(f"/proc/sys/net/ipv4/conf/{name}/proxy_arp_pvlan")
    try:
        path.write_text(str(int(answer)), encoding="ascii")
    except OSError as error:
        raise SystemFailure(
            f"links cannot be opened on {name} ({path}: {error.strerror}): mount /proc/sys "
            "writable for deskd"
        ) from error


def _write_setting(path: str, value: str) -> None:
    try:
        Path(path).write_text(value, encoding="ascii")
    except OSError as error:
        raise SystemFailure(
            f"the bridge cannot be made ready for IPv6 ({path}: {error.strerror}): mount /proc/sys "
            "writable for deskd"
        ) from error


def remove_link(name: str) -> None:
    """Delete an interface; idempotent. Blocks for up to tens of milliseconds."""
    with netlink.RouteSocket() as route:
        _delete_if_there(route, name)


def _delete_if_there(route: netlink.RouteSocket, name: str) -> None:
    try:
        route.request(netlink.delete_link(name))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def remove_stale(
    route: netlink.RouteSocket,
    machine: Machine,
    names: EngineNames,
    *,
    keep: Collection[str] = (),
    keep_veths: Collection[str] = (),
) -> list[str]:
    """Delete what an earlier engine with this data root left: its bridges, the veth pairs on
    them, and the parents that it made, except those to keep. Returns the names of what is gone."""
    owned = {link.index: link for link in machine.links if link.alias.startswith(names.alias())}
    owned_or_default = set(owned) | {link.index for link in machine.links if link.name in keep}
    stale = [
        link.name
        for link in machine.links
        if link.kind == "veth"
        and link.master in owned_or_default
        and link.index >= FIRST_HOST_INDEX
        and link.name not in keep_veths
    ]
    stale += [link.name for link in owned.values() if link.name not in keep]
    for name in stale:
        _delete_if_there(route, name)
    return stale


# --- endpoints ----------------------------------------------------------------------------------


def host_interface(endpoint_id: str) -> tuple[str, int]:
    """Return name and index of an endpoint's end on the machine."""
    return f"veth{endpoint_id[:7]}", FIRST_HOST_INDEX + int(endpoint_id[:7], 16)


def peer_index(interface: str) -> int:
    """Return the index of an interface inside the container."""
    digits = interface[len(interface.rstrip("0123456789")) :]
    return FIRST_PEER_INDEX + int(digits or "0") % 1000


def loopback_script() -> NetlinkScript:
    """What a namespace without any network needs."""
    return NetlinkScript(inside=(netlink.set_up(netlink.LOOPBACK_INDEX),))


class _Templates(msgspec.Struct, frozen=True):
    veth: netlink.Template
    port: netlink.Template
    addresses: tuple[tuple[Subnet, netlink.Template], ...]
    up: tuple[bytes, ...]
    default_routes: dict[int, bytes]


class EndpointScripts:
    """Writes the netlink requests of endpoints on one bridge, from templates made once."""

    def __init__(
        self,
        bridge_index: int,
        plans: Sequence[SubnetPlan],
        mtu: int = 0,
        *,
        inter_container: bool = True,
    ) -> None:
        self._bridge_index = bridge_index
        self._plans = plans
        self._mtu = mtu
        self._inter_container = inter_container
        self._loopback = netlink.set_up(netlink.LOOPBACK_INDEX)
        self._templates: dict[str, _Templates] = {}

    def script(
        self,
        endpoint_id: str,
        addresses: Sequence[Address],
        mac: str,
        *,
        interface: str = "eth0",
        further: Sequence[bytes] = (),
        default_routes: Collection[int] = (4, 6),
    ) -> NetlinkScript:
        """Return the requests for one endpoint; nothing is sent. ``further`` ones go with its
        addresses; ``default_routes`` are the families in which everything goes out here."""
        if interface not in self._templates:
            self._templates[interface] = self._make_templates(interface)
        templates = self._templates[interface]
        name, index = host_interface(endpoint_id)
        create = templates.veth.render(
            name=name.encode(),
            index=netlink.uint32(index),
            peer_mac=bytes.fromhex(mac.replace(":", "")),
        )
        inside = [self._loopback]
        for address in addresses:
            template = next(t for subnet, t in templates.addresses if address in subnet)
            inside.append(template.render(address=address.packed))
        inside += further
        inside += templates.up
        inside += [
            r for version, r in templates.default_routes.items() if version in default_routes
        ]
        port = templates.port.render(index=netlink.uint32(index))
        has_ipv6 = any(address.version == 6 for address in addresses)
        return NetlinkScript(
            (create, port),
            (templates.veth.offset("pid"), None),
            tuple(inside),
            ipv6_sysctls(interface) if has_ipv6 else (),
        )

    def _make_templates(self, interface: str) -> _Templates:
        index = peer_index(interface)
        uses_ipv6 = any(plan.subnet.version == 6 for plan in self._plans)
        # A link-local address would make programs in an IPv4 network ask for IPv6 addresses.
        quiet = (netlink.set_no_link_local(index),) if knows_ipv6() and not uses_ipv6 else ()
        return _Templates(
            netlink.veth_template(
                bridge_index=self._bridge_index, peer=interface, peer_index=index, mtu=self._mtu
            ),
            # With br_netfilter, a container that calls its own published port is sent back on the
            # bridge itself rather than routed: that takes a hairpin port.
            netlink.bridge_port_template(hairpin=True, isolated=not self._inter_container),
            tuple(
                (plan.subnet, netlink.address_template(index, plan.subnet)) for plan in self._plans
            ),
            (*quiet, netlink.set_up(index)),
            {
                plan.subnet.version: netlink.add_default_route(index, plan.gateway)
                for plan in self._plans
            },
        )


def knows_ipv6() -> bool:
    """Tell whether the kernel has IPv6."""
    return os.path.isdir(IPV6_SETTINGS)


def ipv6_sysctls(interface: str) -> tuple[tuple[str, str], ...]:
    """Return the settings of a container's interface with IPv6: addresses and routes come from
    the engine, and not from whoever in the network advertises some."""
    prefix = f"net.ipv6.conf.{interface}"
    return ((f"{prefix}.disable_ipv6", "0"), (f"{prefix}.accept_ra", "0"))
