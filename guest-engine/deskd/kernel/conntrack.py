"""Connection tracking: forgetting UDP flows whose translation is no longer right.

The kernel translates a UDP flow as it did for the flow's first packet, for as long as packets
come. A client that keeps its port would go on talking to a container that is gone, or to nobody,
after the port is published anew. Source: the kernel's nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Collection
from typing import Any

from deskd.kernel import netlink

NETLINK_NETFILTER = 12
SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_SOURCES = ("CTA_IP_V4_SRC", "CTA_IP_V6_SRC")
GET, DELETE = SUBSYSTEM | 1, SUBSYSTEM | 2


def _message_class() -> Any:
    with netlink.without_package():
        from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg
    return nfct_msg


def forget_udp(*, containers: Collection[netlink.IpAddress], host_ports: Collection[int]) -> int:
    """Forget the UDP flows that were sent to these containers, and those to these ports of the
    machine; return how many. Blocks, for some microseconds per flow on the machine."""
    nfct_msg = _message_class()
    marks = [address.packed for address in containers]
    marks += [port.to_bytes(2, "big") for port in host_ports]
    addresses = {str(address) for address in containers}
    forgotten = 0
    with netlink.NetlinkSocket(NETLINK_NETFILTER) as conntrack:
        stale = []
        for data in conntrack.dump(netlink.dump_request(nfct_msg, GET)):
            if not any(mark in data for mark in marks):
                continue  # decoding takes a hundred times longer than this look
            message = nfct_msg(data)
            message.decode()
            if _is_meant(message, addresses, host_ports):
                stale.append(message.get_attr("CTA_TUPLE_ORIG"))
        for original in stale:
            try:
                conntrack.request(_delete_request(nfct_msg, original))
                forgotten += 1
            except OSError as error:
                if error.errno != errno.ENOENT:  # ended by itself meanwhile
                    raise
    return forgotten


def _is_meant(message: Any, addresses: set[str], host_ports: Collection[int]) -> bool:
    original = message.get_attr("CTA_TUPLE_ORIG")
    reply = message.get_attr("CTA_TUPLE_REPLY")
    if not original or not reply:
        return False
    protocol = original.get_attr("CTA_TUPLE_PROTO")
    if protocol.get_attr("CTA_PROTO_NUM") != socket.IPPROTO_UDP:
        return False
    return (
        bool(addresses.intersection(_values(reply.get_attr("CTA_TUPLE_IP"), *_SOURCES)))
        or protocol.get_attr("CTA_PROTO_DST_PORT") in host_ports
    )


def _values(attributes: Any, *names: str) -> list[str]:
    """Return those that are there, IPv6 addresses in their one written form."""
    values = [attributes.get_attr(name) for name in names]
    return [str(ipaddress.ip_address(value)) for value in values if value]


def _delete_request(nfct_msg: Any, original: Any) -> bytes:
    addresses = original.get_attr("CTA_TUPLE_IP")
    protocol = original.get_attr("CTA_TUPLE_PROTO")
    is_ipv6 = bool(_values(addresses, "CTA_IP_V6_SRC"))
    names = ("CTA_IP_V6_SRC", "CTA_IP_V6_DST") if is_ipv6 else ("CTA_IP_V4_SRC", "CTA_IP_V4_DST")
    flow = [
        ("CTA_TUPLE_IP", {"attrs": [(n, addresses.get_attr(n)) for n in names]}),
        (
            "CTA_TUPLE_PROTO",
            {
                "attrs": [
                    (n, protocol.get_attr(n))
                    for n in ("CTA_PROTO_NUM", "CTA_PROTO_SRC_PORT", "CTA_PROTO_DST_PORT")
                ]
            },
        ),
    ]
    message = nfct_msg()
    message["nfgen_family"] = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    message["attrs"] = [("CTA_TUPLE_ORIG", {"attrs": flow})]
    return netlink.encode(message, DELETE, 0)
