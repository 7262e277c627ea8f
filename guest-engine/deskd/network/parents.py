"""Parents of macvlan and ipvlan networks: the machine's interfaces on which containers' are put.

A parent that is there is used as it is. Two kinds are made, and carry the engine's mark: the
interface of a tagged network (``eth0.10``), and a dummy for a network without a parent.
"""

from __future__ import annotations

import re
import socket

from deskd.domain.network import NetworkRecord
from deskd.errors import Conflict, InvalidArgument, NotFound
from deskd.kernel import netlink, stacked_links
from deskd.network.bridge import EngineNames, Machine
from deskd.network.parent_options import has_parent, parent_name

_VLAN = re.compile(r"(?P<master>[^.]+)\.(?P<number>[0-9]+)\Z")
_MOST_VLANS = 4094


def ensure_parent(
    route: netlink.RouteSocket, machine: Machine, names: EngineNames, record: NetworkRecord
) -> bool:
    """See that a network's parent is there and can be one; tell whether this call made it.

    On an error nothing of it stays.
    """
    netlink.check_kinds(route, record.driver)
    name = parent_name(record)
    link = machine.link(name)
    if link is not None:
        _check_parent(machine, link, record)
        return False
    if not has_parent(record):
        netlink.check_kinds(route, "dummy")
        route.request(stacked_links.create_dummy(name))
    else:
        _make_vlan(route, machine, name)
    try:
        route.request(netlink.set_alias(socket.if_nametoindex(name), names.alias(record.id)))
    except BaseException:
        route.request(netlink.delete_link(name))
        raise
    return True


def _check_parent(machine: Machine, link: netlink.Link, record: NetworkRecord) -> None:
    """Raise ``Conflict`` where the kernel would refuse the first container (EBUSY)."""
    master = next((item for item in machine.links if item.index == link.master), None)
    if link.master:
        named = f"the {master.kind} {master.name}" if master is not None else "another interface"
        raise Conflict(
            f"the parent {link.name} belongs to {named}, so that no {record.driver} interface can "
            f"be put on it: give {master.name if master is not None else 'that'} as the parent"
        )


def _make_vlan(route: netlink.RouteSocket, machine: Machine, name: str) -> None:
    found = _VLAN.match(name)
    if found is None:
        raise NotFound(
            f"the parent interface {name} was not found on this machine (`ip link` lists them); "
            "one that is to be made for a tagged network is written as eth0.10"
        )
    number = int(found["number"])
    if not 1 <= number <= _MOST_VLANS:
        raise InvalidArgument(
            f"vlan id must be between 1-{_MOST_VLANS}, received: {found['number']}"
        )
    master = machine.link(found["master"])
    if master is None:
        raise NotFound(f"-o parent interface was not found on the host: {found['master']}")
    netlink.check_kinds(route, "vlan")
    route.request(stacked_links.create_vlan(name, master.index, number))


def remove_parent(
    route: netlink.RouteSocket, machine: Machine, names: EngineNames, name: str
) -> None:
    """Delete a parent that this engine made; any other stays."""
    link = machine.link(name)
    if link is not None and link.alias.startswith(names.alias()):
        route.request(netlink.delete_link(name))
