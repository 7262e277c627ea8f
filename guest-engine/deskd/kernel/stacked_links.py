"""rtnetlink requests for links upon other links: macvlan, ipvlan, VLAN; and dummies to put them on.

Sources: ip-link(8), the kernel's if_link.h and Documentation/networking/ipvlan.rst.
"""

from __future__ import annotations

from typing import Any

from deskd.kernel import netlink

MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
IPVLAN_FLAGS = {"bridge": 0, "private": 1, "vepa": 2}

_NEW = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL


def create_dummy(name: str, index: int) -> bytes:
    """Create an interface that swallows what it is sent; it is up."""
    info = {"attrs": [("IFLA_INFO_KIND", "dummy")]}
    attributes = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", info)]
    return netlink.link_request(netlink.RTM_NEWLINK, _NEW, attributes, index=index, up=True)


def create_vlan(name: str, index: int, parent_index: int, number: int) -> bytes:
    """Create the interface of one tagged network on a parent; it is up."""
    data = {"attrs": [("IFLA_VLAN_ID", number)]}
    attributes = [("IFLA_IFNAME", name), ("IFLA_LINK", parent_index), _info("vlan", data)]
    return netlink.link_request(netlink.RTM_NEWLINK, _NEW, attributes, index=index, up=True)


def create_macvlan(
    name: str, *, index: int, parent_index: int, mode: str, mac: str, mtu: int = 0
) -> netlink.Template:
    """Return the request for an interface with a MAC of its own on a parent, with the field
    ``pid``: it appears in that process's namespace, and is down."""
    data = {"attrs": [("IFLA_MACVLAN_MODE", MACVLAN_MODES[mode])]}
    more: list[tuple[str, Any]] = [("IFLA_ADDRESS", mac)]
    return _in_namespace(name, index, parent_index, _info("macvlan", data), mtu, more)


def create_ipvlan(
    name: str, *, index: int, parent_index: int, mode: str, flag: str, mtu: int = 0
) -> netlink.Template:
    """Return the request for an interface that shares its parent's MAC, with the field ``pid``:
    it appears in that process's namespace, and is down."""
    _know_ipvlan_flags()
    data = {"attrs": [("IFLA_IPVLAN_MODE", IPVLAN_MODES[mode])]}
    if flag != "bridge":
        data["attrs"].append(("IFLA_IPVLAN_FLAGS", IPVLAN_FLAGS[flag]))
    return _in_namespace(name, index, parent_index, _info("ipvlan", data), mtu, [])


def _info(kind: str, data: dict[str, Any]) -> tuple[str, Any]:
    attributes = [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", data)]
    return "IFLA_LINKINFO", {"attrs": attributes}


def _in_namespace(
    name: str,
    index: int,
    parent_index: int,
    info: tuple[str, Any],
    mtu: int,
    more: list[tuple[str, Any]],
) -> netlink.Template:
    attributes: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", name),
        ("IFLA_LINK", parent_index),
        ("IFLA_NET_NS_PID", netlink.MARK_PID),
        info,
        *more,
    ]
    if mtu:
        attributes.append(("IFLA_MTU", mtu))
    request = netlink.link_request(netlink.RTM_NEWLINK, _NEW, attributes, index=index)
    return netlink.Template(request, {"pid": netlink.uint32(netlink.MARK_PID)})


def _know_ipvlan_flags() -> None:
    """WORKAROUND: pyroute2 0.9 knows IFLA_IPVLAN_MODE but not IFLA_IPVLAN_FLAGS (Linux 4.15)."""
    kinds = netlink.load_messages().ifinfmsg.ifinfo.data_map
    if all(name != "IFLA_IPVLAN_FLAGS" for name, _ in kinds["ipvlan"].nla_map):
        known = (*kinds["ipvlan"].nla_map, ("IFLA_IPVLAN_FLAGS", "uint16"))
        kinds["ipvlan"] = type("ipvlan", (kinds["ipvlan"],), {"nla_map": known})
