"""Bridge networks: a veth pair for each member, addresses, and published ports."""

from __future__ import annotations

import contextlib
import secrets

import msgspec

from deskd.domain.network import Endpoint, EndpointRequest, NetworkRecord
from deskd.network import catalog as networks
from deskd.network.address_book import AddressBook
from deskd.network.addresses import VERSIONS
from deskd.network.bridge import EndpointScripts, host_interface, peer_index
from deskd.network.endpoint_settings import (
    checked_mac,
    dns_names,
    link_local_requests,
    port_bindings,
    with_addresses,
)
from deskd.network.ipam import hardware_address
from deskd.network.kernel_state import KernelState
from deskd.network.members import Member, Members
from deskd.network.publishing import Publishing


class BridgeDriver:
    """Puts containers on bridges."""

    uses_kernel = True

    def __init__(
        self,
        kernel: KernelState,
        addresses: AddressBook,
        publishing: Publishing,
        members: Members,
    ) -> None:
        self._kernel = kernel
        self._addresses = addresses
        self._publishing = publishing
        self._members = members
        self._scripts: dict[str, EndpointScripts] = {}

    async def join(self, record: NetworkRecord, request: EndpointRequest) -> Member:
        """Reserve addresses and ports and publish; touches nothing but the firewall's maps."""
        given = self._addresses.of(record)
        mac = checked_mac(request.settings)
        with contextlib.ExitStack() as undo:
            addresses = self._addresses.give(record, request.settings, undo)
            publications = self._publishing.publish(record, request, addresses, undo)
            endpoint_id = self._new_endpoint_id()
            mac = mac or hardware_address(addresses[0])
            wanted_routes = {4: request.default_route, 6: request.default_route_ipv6}
            script = self._scripts_of(record).script(
                endpoint_id,
                addresses,
                mac,
                interface=request.interface,
                further=link_local_requests(request.settings, peer_index(request.interface)),
                default_routes=() if record.internal else [v for v in VERSIONS if wanted_routes[v]],
            )
            undo.pop_all()
        is_default = record.name == networks.DEFAULT_NETWORK
        settings = msgspec.structs.replace(
            request.settings,
            network_id=record.id,
            endpoint_id=endpoint_id,
            mac_address=mac,
            dns_names=None if is_default else dns_names(request),
        )
        endpoint = Endpoint(
            record.id,
            record.name,
            endpoint_id,
            with_addresses(
                settings,
                [(address, given.plan_of(address)) for address in addresses],
                internal=record.internal,
            ),
            script,
            port_bindings(publications),
            record.driver,
        )
        return Member(endpoint, addresses, tuple(publications))

    def forget(self, network_id: str) -> None:
        """Forget what was made ready for a network that is gone."""
        self._scripts.pop(network_id, None)

    def _scripts_of(self, record: NetworkRecord) -> EndpointScripts:
        if record.id not in self._scripts:
            self._scripts[record.id] = EndpointScripts(
                self._kernel.bridge_index(record.id),
                self._addresses.of(record).plans,
                networks.bridge_mtu(record),
                inter_container=networks.allows_inter_container(record),
            )
        return self._scripts[record.id]

    def _new_endpoint_id(self) -> str:
        taken = self._members.host_interfaces()
        while True:
            endpoint_id = secrets.token_hex(32)
            if host_interface(endpoint_id)[0] not in taken:
                return endpoint_id
