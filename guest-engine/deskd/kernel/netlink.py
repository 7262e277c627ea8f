"""rtnetlink: links, addresses and routes, with pyroute2's message classes.

Only message classes are taken from pyroute2, and only on first use: ``import pyroute2`` runs a
package that pulls in every protocol it knows (about 250 ms and 24 MB); the three message modules
that the engine needs take 12 ms and 2 MB. Requests that differ in a few fields only are encoded
once as a ``Template`` and patched afterwards (about 3 µs instead of 270 µs).

Sources: rtnetlink(7), netlink(7), the kernel's Documentation/netlink/specs/rt-link.yaml.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import ipaddress
import os
import socket
import struct
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from typing import Any, Self

from deskd.errors import SystemFailure, Unsupported
from deskd.record import Record

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK_INDEX = 1
"""The kernel creates ``lo`` first in every network namespace (LOOPBACK_IFINDEX)."""

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x2, 0x4, 0x300
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200  # flags of an acknowledgement
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
IFF_UP = 0x1
IFF_LOWER_UP = 0x10000
IFA_F_NODAD = 0x2
IN6_ADDR_GEN_MODE_NONE = 1
SOL_NETLINK = 270
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
NLMSGERR_ATTR_MSG = 1
IFLA_NET_NS_PID = 19
RT_TABLE_MAIN = 254
_HEADER = struct.Struct("=LHHLL")
_RECEIVE_BYTES = 1 << 18


# --- pyroute2's message classes -----------------------------------------------------------------


class _Messages(Record):
    ifinfmsg: Any
    ifaddrmsg: Any
    rtmsg: Any


_messages: _Messages | None = None
_messages_lock = threading.Lock()


def load_messages() -> _Messages:
    """Import pyroute2's message classes without the rest of the package; cheap when done before.

    The submodules are imported below a bare stand-in for the package, which is taken away again:
    a later ``import pyroute2`` finds the whole package.
    """
    global _messages
    with _messages_lock:
        if _messages is None:
            _messages = _import_messages()
        return _messages


def _import_messages() -> _Messages:
    with without_package():
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
        from pyroute2.netlink.rtnl.rtmsg import rtmsg
    return _Messages(ifinfmsg, ifaddrmsg, rtmsg)


@contextlib.contextmanager
def without_package() -> Iterator[None]:
    """Let modules of pyroute2 be imported without running the package itself."""
    bare = None
    if "pyroute2" not in sys.modules:
        spec = importlib.util.find_spec("pyroute2")
        if spec is None or spec.submodule_search_locations is None:
            raise Unsupported(
                "the Python package pyroute2 is missing: install desk-toolkit[engine]"
            )
        bare = types.ModuleType("pyroute2")
        bare.__path__ = list(spec.submodule_search_locations)
        sys.modules["pyroute2"] = bare
    try:
        yield
    finally:
        if bare is not None and sys.modules.get("pyroute2") is bare:
            del sys.modules["pyroute2"]


def encode(message: Any, message_type: int, flags: int) -> bytes:
    """Encode one of pyroute2's messages as a request that is to be acknowledged."""
    message["header"]["type"] = message_type
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | flags
    message.encode()
    return bytes(message.data)


# --- requests -----------------------------------------------------------------------------------


def link_request(
    message_type: int,
    flags: int,
    attributes: list[tuple[str, Any]],
    *,
    index: int = 0,
    up: bool | None = None,
) -> bytes:
    """Encode a request about one link, which is known by its index or by its attributes."""
    message = load_messages().ifinfmsg()
    message["index"] = index
    if up is not None:
        message["flags"] = IFF_UP if up else 0
        message["change"] = IFF_UP
    message["attrs"] = attributes
    return encode(message, message_type, flags)


def create_bridge(name: str, mac: str, mtu: int = 0, *, index: int = 0) -> bytes:
    """Create a bridge that is up; without an index the kernel chooses one. Its address is fixed:
    else it would follow its ports."""
    attributes: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", name),
        ("IFLA_ADDRESS", mac),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]}),
    ]
    if mtu:
        attributes.append(("IFLA_MTU", mtu))
    return link_request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, attributes, index=index, up=True)


def set_alias(index: int, alias: str) -> bytes:
    """Set a link's alias, a text that tells whose it is (``ip link`` shows it)."""
    return link_request(RTM_NEWLINK, 0, [("IFLA_IFALIAS", alias)], index=index)


def set_up(index: int) -> bytes:
    """Bring a link up."""
    return link_request(RTM_NEWLINK, 0, [], index=index, up=True)


def set_no_link_local(index: int) -> bytes:
    """Let a link that is still down make no IPv6 address by itself.

    A kernel without IPv6 refuses this (EAFNOSUPPORT).
    """
    family = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)]}
    attributes = [("IFLA_AF_SPEC", {"attrs": [("AF_INET6", family)]})]
    return link_request(RTM_NEWLINK, 0, attributes, index=index)


def delete_link(name: str) -> bytes:
    """Delete a link by name; for one end of a veth pair, both ends."""
    return link_request(RTM_DELLINK, 0, [("IFLA_IFNAME", name)])


def probe_kind(kind: str) -> bytes:
    """Ask for a link without transmit queues, which is refused (EINVAL) before anything is made.

    A kernel without this kind of link answers EOPNOTSUPP.
    """
    attributes = [
        ("IFLA_IFNAME", "desk-probe"),
        ("IFLA_NUM_TX_QUEUES", 0),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]}),
    ]
    return link_request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, attributes)


def create_veth(
    name: str, *, index: int, bridge_index: int, peer: str, peer_index: int, peer_mac: str,
    peer_namespace_pid: int, mtu: int = 0,
) -> bytes:  # fmt: skip
    """Create a veth pair in one request: ``name`` up on the bridge, ``peer`` in the namespace.

    The peer stays down: the kernel opens no veth end before it knows the other (ENOTCONN). Both
    indices are given because the kernel honours the peer's only together with the outer one; so
    the requests inside the namespace can be written before it exists.
    """
    size = [("IFLA_MTU", mtu)] if mtu else []
    peer_message = {
        "index": peer_index,
        "attrs": [
            ("IFLA_IFNAME", peer),
            ("IFLA_ADDRESS", peer_mac),
            ("IFLA_NET_NS_PID", peer_namespace_pid),
            *size,
        ],
    }
    data = {"attrs": [("VETH_INFO_PEER", peer_message)]}
    attributes: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", name),
        ("IFLA_MASTER", bridge_index),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}),
        *size,
    ]
    return link_request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, attributes, index=index, up=True)


def set_bridge_port(index: int, *, hairpin: bool = False, isolated: bool = False) -> bytes:
    """Configure a port of a bridge: send frames back where they came from; no frames between
    isolated ports."""
    modes = [("IFLA_BRPORT_MODE", int(hairpin))]
    if isolated:
        modes.append(("IFLA_BRPORT_ISOLATED", 1))
    slave = [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", {"attrs": modes})]
    return link_request(RTM_NEWLINK, 0, [("IFLA_LINKINFO", {"attrs": slave})], index=index)


def add_address(index: int, address: IpAddress, prefix_length: int) -> bytes:
    """Give a link an address; an IPv4 one with its subnet's broadcast address.

    An IPv6 one serves at once: who gives it knows that nobody else on the link has it.
    """
    return _address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, index, address, prefix_length)


def delete_address(index: int, address: IpAddress, prefix_length: int) -> bytes:
    """Take an address from a link."""
    return _address(RTM_DELADDR, 0, index, address, prefix_length)


def _address(
    message_type: int, flags: int, index: int, address: IpAddress, prefix_length: int
) -> bytes:
    message = load_messages().ifaddrmsg()
    message["family"] = socket.AF_INET if address.version == 4 else socket.AF_INET6
    message["prefixlen"] = prefix_length
    message["index"] = index
    if address.version == 6:
        message["flags"] = IFA_F_NODAD
    attributes = [("IFA_ADDRESS", str(address)), ("IFA_LOCAL", str(address))]
    if address.version == 4 and prefix_length < 31:
        network = ipaddress.ip_network(f"{address}/{prefix_length}", strict=False)
        attributes.append(("IFA_BROADCAST", str(network.broadcast_address)))
    message["attrs"] = attributes
    return encode(message, message_type, flags)


def add_device_route(index: int, version: int, *, replace: bool = False) -> bytes:
    """Send everything that has no other route out by a link, to whoever answers there."""
    return _default_route(version, [("RTA_OIF", index)], scope=253, replace=replace)


def add_default_route(index: int, gateway: IpAddress, *, replace: bool = False) -> bytes:
    """Send everything that has no other route through ``gateway``; with ``replace`` also where
    there is such a route."""
    attributes = [("RTA_GATEWAY", str(gateway)), ("RTA_OIF", index)]
    return _default_route(gateway.version, attributes, scope=0, replace=replace)


def _default_route(
    version: int, attributes: list[tuple[str, Any]], *, scope: int, replace: bool
) -> bytes:
    message = load_messages().rtmsg()
    message["family"] = socket.AF_INET if version == 4 else socket.AF_INET6
    message["table"] = RT_TABLE_MAIN
    message["proto"] = 3  # RTPROT_BOOT: set while the interface is configured
    message["type"] = 1  # RTN_UNICAST
    message["scope"] = scope if version == 4 else 0  # IPv6 routes have none
    message["attrs"] = attributes
    flags = NLM_F_REPLACE if replace else NLM_F_EXCL
    return encode(message, RTM_NEWROUTE, NLM_F_CREATE | flags)


# --- templates ----------------------------------------------------------------------------------


class Template:
    """An encoded request with fields to patch; each field has one length at all its places."""

    def __init__(self, request: bytes, marks: Mapping[str, bytes]) -> None:
        """``marks`` are the byte strings that stand in ``request`` where the fields go."""
        self._request = request
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        for name, mark in marks.items():
            places = tuple(_find_all(request, mark))
            if not places:
                raise ValueError(f"the request has no place for {name}")
            self._places[name] = (len(mark), places)

    def offset(self, name: str) -> int:
        """Return the first place of a field."""
        return self._places[name][1][0]

    def render(self, **fields: bytes) -> bytes:
        """Return the request with these fields; others keep their marks."""
        request = bytearray(self._request)
        for name, value in fields.items():
            length, places = self._places[name]
            if len(value) != length:
                raise ValueError(f"{name} takes {length} bytes, not {len(value)}")
            for place in places:
                request[place : place + length] = value
        return bytes(request)


def _find_all(data: bytes, mark: bytes) -> Iterator[int]:
    place = data.find(mark)
    while place >= 0:
        yield place
        place = data.find(mark, place + len(mark))


MARK_NAME = "vethzqxjkwv"  # as long as every real name: "veth" and 7 hexadecimal digits
MARK_INDEX = 0x5A5A0001
MARK_PID = 0x5A5A0002
MARK_MAC = "5a:a5:5a:a5:5a:a5"
MARK_ADDRESSES: Mapping[int, IpAddress] = {
    4: ipaddress.ip_address("90.165.90.165"),
    6: ipaddress.ip_address("5aa5:a55a:5aa5:a55a:5aa5:a55a:5aa5:a55a"),
}
"""An address of each family that stands where an endpoint's address goes."""


def uint32(number: int) -> bytes:
    """Encode an unsigned 32 bit number in the machine's byte order, as netlink has it."""
    return struct.pack("=I", number)


def veth_template(*, bridge_index: int, peer: str, peer_index: int, mtu: int = 0) -> Template:
    """Return ``create_veth`` with the fields ``name``, ``index``, ``peer_mac`` and ``pid``."""
    request = create_veth(
        MARK_NAME, index=MARK_INDEX, bridge_index=bridge_index, peer=peer, peer_index=peer_index,
        peer_mac=MARK_MAC, peer_namespace_pid=MARK_PID, mtu=mtu,
    )  # fmt: skip
    marks = {
        "name": MARK_NAME.encode(),
        "index": uint32(MARK_INDEX),
        "peer_mac": bytes.fromhex(MARK_MAC.replace(":", "")),
        "pid": uint32(MARK_PID),
    }
    return Template(request, marks)


def bridge_port_template(*, hairpin: bool, isolated: bool) -> Template:
    """Return ``set_bridge_port`` with the field ``index``."""
    request = set_bridge_port(MARK_INDEX, hairpin=hairpin, isolated=isolated)
    return Template(request, {"index": uint32(MARK_INDEX)})


def address_template(index: int, network: IpNetwork) -> Template:
    """Return ``add_address`` with the field ``address`` for addresses of one subnet."""
    mark = MARK_ADDRESSES[network.version]
    request = add_address(index, mark, network.prefixlen)
    if network.version == 4 and network.prefixlen < 31:
        wrong = ipaddress.ip_network(f"{mark}/{network.prefixlen}", strict=False)
        broadcast = wrong.broadcast_address.packed
        place = request.rindex(broadcast)
        request = request[:place] + network.broadcast_address.packed + request[place + 4 :]
    return Template(request, {"address": mark.packed})


# --- talking to the kernel ----------------------------------------------------------------------


class Link(Record):
    """A network interface of the current namespace; ``master`` is an index, 0 for none."""

    index: int
    name: str
    alias: str
    kind: str
    master: int
    mac: str
    up: bool


class NetlinkSocket:
    """A connection to one netlink family in the network namespace of the thread that makes it.

    Calls block until the kernel has answered, which it does within the call; a request that
    deletes a link can take tens of milliseconds and belongs in a thread. Not shared by threads.
    """

    def __init__(self, family: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family
        )
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, *requests: bytes) -> None:
        """Send requests and take their acknowledgements; raises ``OSError`` for the first that
        failed, with the kernel's explanation where it gives one.

        The kernel carries out all of them within the one call, also when this process is killed
        meanwhile, and goes on after one that fails.
        """
        self._socket.send(b"".join(requests))
        answers = [self._socket.recv(_RECEIVE_BYTES) for _ in requests]
        for answer in answers:
            for kind, flags, body in _split(answer):
                if kind == NLMSG_ERROR:
                    _raise_for(flags, body)

    def dump(self, request: bytes) -> Iterator[bytes]:
        """Send a request for a list and yield the messages of the answer, each with its header."""
        self._socket.send(request)
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            place = 0
            while place + _HEADER.size <= len(data):
                length, kind, flags, _, _ = _HEADER.unpack_from(data, place)
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    _raise_for(flags, data[place + _HEADER.size : place + length])
                    return
                yield data[place : place + length]
                place += (length + 3) & ~3


class RouteSocket(NetlinkSocket):
    """A connection to rtnetlink."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE)

    def links(self) -> list[Link]:
        """List all interfaces."""
        messages = load_messages()
        found = []
        for data in self.dump(dump_request(messages.ifinfmsg, RTM_GETLINK)):
            message = messages.ifinfmsg(data)
            message.decode()
            info = message.get_attr("IFLA_LINKINFO")
            found.append(
                Link(
                    index=message["index"],
                    name=message.get_attr("IFLA_IFNAME"),
                    alias=message.get_attr("IFLA_IFALIAS") or "",
                    kind=(info.get_attr("IFLA_INFO_KIND") if info else "") or "",
                    master=message.get_attr("IFLA_MASTER") or 0,
                    mac=message.get_attr("IFLA_ADDRESS") or "",
                    up=bool(message["flags"] & IFF_UP),
                )
            )
        return found

    def is_connected(self, index: int) -> bool:
        """Tell whether an interface exists and has a carrier: for one end of a veth pair, whether
        both ends are up. (IFF_RUNNING is also set for a moment before the first such state.)"""
        question = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0)
        header = _HEADER.pack(_HEADER.size + len(question), RTM_GETLINK, NLM_F_REQUEST, 0, 0)
        self._socket.send(header + question)
        for kind, _, body in _split(self._socket.recv(_RECEIVE_BYTES)):
            if kind == RTM_NEWLINK:
                return bool(struct.unpack_from("=I", body, 8)[0] & IFF_LOWER_UP)
        return False

    def addresses(self) -> list[tuple[int, IpAddress, int]]:
        """List all addresses as (interface index, address, prefix length)."""
        messages = load_messages()
        found = []
        for data in self.dump(dump_request(messages.ifaddrmsg, RTM_GETADDR)):
            message = messages.ifaddrmsg(data)
            message.decode()
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text:
                found.append((message["index"], ipaddress.ip_address(text), message["prefixlen"]))
        return found

    def routes(self) -> list[tuple[int, IpNetwork]]:
        """List the destinations of the main table's routes as (interface index, network), the
        default routes left out."""
        messages = load_messages()
        found = []
        for data in self.dump(dump_request(messages.rtmsg, RTM_GETROUTE)):
            message = messages.rtmsg(data)
            message.decode()
            destination = message.get_attr("RTA_DST")
            table = message.get_attr("RTA_TABLE") or message["table"]
            if destination and table == RT_TABLE_MAIN:
                network = ipaddress.ip_network(f"{destination}/{message['dst_len']}", strict=False)
                found.append((message.get_attr("RTA_OIF") or 0, network))
        return found


def dump_request(message_class: Any, message_type: int) -> bytes:
    """Encode a request for everything of one kind."""
    message = message_class()
    message["header"]["type"] = message_type
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_DUMP
    message.encode()
    return bytes(message.data)


def _split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    place = 0
    while place + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, place)
        yield kind, flags, data[place + _HEADER.size : place + length]
        place += max((length + 3) & ~3, _HEADER.size)


def _raise_for(flags: int, body: bytes) -> None:
    (negative,) = struct.unpack_from("=i", body)
    if not negative:
        return
    number = -negative
    text = os.strerror(number)
    explanation = _explanation(flags, body)
    raise OSError(number, f"{text} ({explanation})" if explanation else text)


def _explanation(flags: int, body: bytes) -> str:
    if not flags & NLM_F_ACK_TLVS:
        return ""
    (length,) = struct.unpack_from("=L", body, 4)
    place = 4 + (_HEADER.size if flags & NLM_F_CAPPED else length)
    while place + 4 <= len(body):
        size, kind = struct.unpack_from("=HH", body, place)
        if size < 4:
            break
        if kind & 0x3FFF == NLMSGERR_ATTR_MSG:
            return body[place + 4 : place + size].rstrip(b"\0").decode(errors="replace")
        place += (size + 3) & ~3
    return ""


_WITHOUT_BRIDGES = "--network host and --network none work without"
_WITH_BRIDGES = "networks of the driver bridge work without"
KIND_OPTIONS = {
    "bridge": ("CONFIG_BRIDGE", "bridge", "bridge networks", _WITHOUT_BRIDGES),
    "veth": ("CONFIG_VETH", "veth", "bridge networks", _WITHOUT_BRIDGES),
    "macvlan": ("CONFIG_MACVLAN", "macvlan", "macvlan networks", _WITH_BRIDGES),
    "ipvlan": ("CONFIG_IPVLAN", "ipvlan", "ipvlan networks", _WITH_BRIDGES),
    "dummy": ("CONFIG_DUMMY", "dummy", "networks without a parent", "give one with -o parent="),
    "vlan": (
        "CONFIG_VLAN_8021Q",
        "8021q",
        "parents such as eth0.10",
        "an interface that exists works without",
    ),
}
"""The kernel's option and module of each kind of link, who needs it, and what works without."""


def check_kinds(route_socket: RouteSocket, *kinds: str) -> None:
    """Raise ``Unsupported`` naming the kernel's option where it lacks a kind of link."""
    for kind in kinds:
        try:
            route_socket.request(probe_kind(kind))
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                option, module, purpose, rest = KIND_OPTIONS[kind]
                raise Unsupported(
                    f"the kernel has no {kind} links, which {purpose} need: load the module "
                    f"{module} or use a kernel with {option} ({rest})"
                ) from error
            if error.errno == errno.EPERM:
                raise SystemFailure(
                    "network interfaces cannot be made without CAP_NET_ADMIN: run deskd as root"
                ) from error
            if error.errno != errno.EINVAL:
                raise
