"""Networks of the drivers macvlan and ipvlan: an interface upon one of the machine's for each
member, which the machine's bridges and firewall never see."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence

import msgspec

from deskd.domain.network import (
    OPTION_IPVLAN_FLAG,
    Endpoint,
    EndpointRequest,
    NetlinkScript,
    NetworkRecord,
)
from deskd.errors import Forbidden, InvalidArgument
from deskd.kernel import netlink, stacked_links
from deskd.network import catalog as networks
from deskd.network.address_book import AddressBook
from deskd.network.addresses import VERSIONS
from deskd.network.bridge import ipv6_sysctls, knows_ipv6, peer_index
from deskd.network.catalog import Catalog
from deskd.network.drivers.way_out import default_route
from deskd.network.endpoint_settings import (
    checked_mac,
    dns_names,
    link_local_requests,
    with_addresses,
)
from deskd.network.ipam import Address, hardware_address
from deskd.network.kernel_state import KernelState
from deskd.network.members import Member, Members
from deskd.network.parent_options import parent_mode, uses_gateway


class StackedDriver:
    """Puts containers' interfaces upon parents. Ports are not published: the network outside
    reaches a container by its own address."""

    uses_kernel = True

    def __init__(
        self, catalog: Catalog, kernel: KernelState, addresses: AddressBook, members: Members
    ) -> None:
        self._catalog = catalog
        self._kernel = kernel
        self._addresses = addresses
        self._members = members

    async def join(self, record: NetworkRecord, request: EndpointRequest) -> Member:
        """Reserve addresses and write the requests for the interface; makes a parent again that
        has gone meanwhile."""
        parent_index = await asyncio.to_thread(self._kernel.parent_index, record)
        record = self._catalog.find(record.id)  # it may have been removed meanwhile
        mac = checked_mac(request.settings)
        if record.driver == "ipvlan" and mac:
            raise InvalidArgument(
                "ipvlan interfaces do not support custom mac address assignment: leave the MAC "
                "out, or use the driver macvlan"
            )
        self._check_passthru(record)
        with contextlib.ExitStack() as undo:
            addresses = self._addresses.give(record, request.settings, undo)
            if record.driver == "macvlan":
                mac = mac or hardware_address(addresses[0])
            script = self._script(record, request, parent_index, addresses, mac)
            undo.pop_all()
        given = self._addresses.of(record)
        endpoint_id = secrets.token_hex(32)
        settings = msgspec.structs.replace(
            request.settings,
            network_id=record.id,
            endpoint_id=endpoint_id,
            mac_address=mac,
            dns_names=dns_names(request),
        )
        settings = with_addresses(
            settings,
            [(address, given.plan_of(address)) for address in addresses],
            internal=record.internal or not uses_gateway(record),
        )
        endpoint = Endpoint(
            record.id, record.name, endpoint_id, settings, script, driver=record.driver
        )
        return Member(endpoint, addresses)

    def _check_passthru(self, record: NetworkRecord) -> None:
        """One container has all of a parent in this mode; the kernel would say EINVAL."""
        if parent_mode(record) == "passthru":
            others = self._members.described(record.id)
            if others:
                taker = next(iter(others.values())).name
                raise Forbidden(
                    f"network {record.name} takes one container, because its macvlan_mode is "
                    f"passthru: {taker} has it"
                )

    def _script(
        self,
        record: NetworkRecord,
        request: EndpointRequest,
        parent_index: int,
        addresses: Sequence[Address],
        mac: str,
    ) -> NetlinkScript:
        index = peer_index(request.interface)
        create = _creation(record, request.interface, parent_index, mac)
        given = self._addresses.of(record)
        inside = [netlink.set_up(netlink.LOOPBACK_INDEX)]
        for address in addresses:
            length = given.plan_of(address).subnet.prefixlen
            inside.append(netlink.add_address(index, address, length))
        inside += link_local_requests(request.settings, index)
        has_ipv6 = any(address.version == 6 for address in addresses)
        if knows_ipv6() and not has_ipv6:
            inside.append(netlink.set_no_link_local(index))
        inside.append(netlink.set_up(index))
        wanted_routes = {4: request.default_route, 6: request.default_route_ipv6}
        if networks.leads_out(record):
            inside += [
                default_route(record, given, index, version)
                for version in VERSIONS
                if wanted_routes[version] and given.gateway(version) is not None
            ]
        return NetlinkScript(
            (create.render(),),
            (create.offset("pid"),),
            tuple(inside),
            ipv6_sysctls(request.interface) if has_ipv6 else (),
        )


def _creation(
    record: NetworkRecord, interface: str, parent_index: int, mac: str
) -> netlink.Template:
    index, mtu = peer_index(interface), networks.bridge_mtu(record)
    options = record.options
    if record.driver == "macvlan":
        return stacked_links.create_macvlan(
            interface,
            index=index,
            parent_index=parent_index,
            mode=parent_mode(record),
            mac=mac,
            mtu=mtu,
        )
    return stacked_links.create_ipvlan(
        interface,
        index=index,
        parent_index=parent_index,
        mode=parent_mode(record),
        flag=options.get(OPTION_IPVLAN_FLAG) or "bridge",
        mtu=mtu,
    )


def removal(interface: str) -> NetlinkScript:
    """Return what takes a member's interface out of its running container."""
    return NetlinkScript(inside=(netlink.delete_link(interface),))
