"""The addresses of all networks: who may have which, given and taken back."""

from __future__ import annotations

import contextlib

from deskd.domain.container import EndpointSettings
from deskd.domain.network import NetworkRecord
from deskd.errors import Conflict
from deskd.network.addresses import VERSIONS, NetworkAddresses, plans_of, wanted_address
from deskd.network.catalog import Catalog
from deskd.network.ipam import Address


class AddressBook:
    """The addresses of every network, made from its record when it is first asked for."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._by_network: dict[str, NetworkAddresses] = {}

    def of(self, record: NetworkRecord) -> NetworkAddresses:
        """Return a network's addresses."""
        if record.id not in self._by_network:
            plans = plans_of(self._catalog.find(record.id))
            if not plans:
                raise Conflict(f"network {record.name} has no subnet yet: try again")
            self._by_network[record.id] = NetworkAddresses(plans)
        return self._by_network[record.id]

    def forget(self, network_id: str) -> None:
        """Forget the addresses of a network that is gone."""
        self._by_network.pop(network_id, None)

    def give(
        self, record: NetworkRecord, settings: EndpointSettings, undo: contextlib.ExitStack
    ) -> tuple[Address, ...]:
        """Give an endpoint one address of each family that the network has; ``undo`` gets what
        takes them back."""
        given = self.of(record)
        found = []
        for version in VERSIONS:
            wanted = wanted_address(record, settings, version)
            address = given.reserve(wanted) if wanted else given.allocate(version)
            if address is not None:
                undo.callback(given.release, [address])
                found.append(address)
        return tuple(found)
