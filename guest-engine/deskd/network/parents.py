"""Parents of macvlan and ipvlan networks: the machine's interfaces on which containers' are put.

A parent that is there is used as it is. Two kinds are made, and carry the engine's mark: the
interface of a tagged network (``eth0.10``), and a dummy for a network without a parent.
"""

from __future__ import annotations

import re

from deskd.domain.network import NetworkRecord
from deskd.errors import Conflict, InvalidArgument, NotFound
from deskd.kernel import netlink, stacked_links
from deskd.network.bridge import EngineNames, Machine, link_index
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
        make = stacked_links.create_dummy(name, link_index(record.id))
    else:
        make = _vlan(machine, name, link_index(record.id))
        netlink.check_kinds(route, "vlan")
    # One request: a parent of an engine that was killed before the mark would be nobody's.
    route.request(make, netlink.set_alias(link_index(record.id), names.alias(record.id)))
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


def _vlan(machine: Machine, name: str, index: int) -> bytes:
    """Return the request for a tagged network's interface. Raises ``NotFound`` for one without a
    master that is there, ``InvalidArgument`` for a number that no tag has."""
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
    return stacked_links.create_vlan(name, index, master.index, number)


def remove_parent(
    route: netlink.RouteSocket, machine: Machine, names: EngineNames, name: str
) -> None:
    """Delete a parent that this engine made; any other stays."""
    link = machine.link(name)
    if link is not None and link.alias.startswith(names.alias()):
        route.request(netlink.delete_link(name))
