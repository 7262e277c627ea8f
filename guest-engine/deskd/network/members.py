"""Who is in which network, with what has been given to it, and what it is called there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from deskd.domain.network import Endpoint, NetworkContainer, NetworkRecord
from deskd.network import catalog as networks
from deskd.network.bridge import host_interface
from deskd.network.endpoint_settings import described, named, with_dns_names
from deskd.network.firewall import Publication
from deskd.network.ipam import Address
from deskd.network.name_table import NameTable


class Member(msgspec.Struct, frozen=True):
    """One granted endpoint with what has to be given back."""

    endpoint: Endpoint
    addresses: tuple[Address, ...] = ()
    publications: tuple[Publication, ...] = ()

    @property
    def is_bridged(self) -> bool:
        """Whether it has an interface on a bridge, which the firewall and faults see."""
        return self.endpoint.driver == "bridge"


class Members:
    """The members of all networks, and their part of the name server's table."""

    def __init__(self, catalog: networks.Catalog, names: NameTable) -> None:
        self._catalog = catalog
        self._names = names
        self._members: dict[tuple[str, str], Member] = {}
        self._container_names: dict[str, str] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._members

    def __getitem__(self, key: tuple[str, str]) -> Member:
        """Return the member with this container ID and network ID."""
        return self._members[key]

    def add(self, container_id: str, network_id: str, member: Member) -> None:
        """Add a member or replace what is known of it; nobody finds it by name yet."""
        self._members[container_id, network_id] = member

    def remove(self, container_id: str, network_id: str) -> Member | None:
        """Forget a member and its names; return it, ``None`` where there is none."""
        self._names.remove(container_id, network_id)
        return self._members.pop((container_id, network_id), None)

    # --- names ----------------------------------------------------------------------------------

    def call(self, names: Mapping[str, str]) -> None:
        """Take note of containers' names, by ID."""
        self._container_names.update(names)

    def name_of(self, container_id: str) -> str:
        """Return a container's name, empty where it is not known."""
        return self._container_names.get(container_id, "")

    def make_known(self, container_id: str, record: NetworkRecord) -> None:
        """Let others in the network find a member by its names."""
        member = self._members[container_id, record.id]
        if member.addresses and networks.has_name_server(record):
            self._names.add(
                named(container_id, self.name_of(container_id), record, member.endpoint)
            )

    def rename(self, container_id: str, name: str) -> None:
        """Take note of a container's new name wherever it is a member."""
        old = self.name_of(container_id)
        if old:
            self._container_names[container_id] = name
        for (owner, network_id), member in list(self._members.items()):
            record = self._catalog.get(network_id)
            if owner != container_id or record is None:
                continue
            names = member.endpoint.settings.dns_names
            if names is not None:
                own = tuple(dict.fromkeys(name if item == old else item for item in names))
                endpoint = with_dns_names(member.endpoint, list(own))
                self._members[owner, network_id] = msgspec.structs.replace(
                    member, endpoint=endpoint
                )
            self.make_known(container_id, record)

    # --- questions ------------------------------------------------------------------------------

    def used_networks(self) -> set[str]:
        """Return the IDs of the networks that have a member."""
        return {network_id for _, network_id in self._members}

    def endpoints_of(self, container_id: str) -> list[Endpoint]:
        """Return a container's endpoints in the order in which it joined."""
        return [m.endpoint for (owner, _), m in self._members.items() if owner == container_id]

    def described(self, network_id: str) -> dict[str, NetworkContainer]:
        """Return a network's members as its inspect shows them, by container ID."""
        return {
            container_id: described(self.name_of(container_id), member.endpoint)
            for (container_id, owner), member in self._members.items()
            if owner == network_id
        }

    def host_interfaces(self) -> set[str]:
        """Return the names of the members' interfaces on the machine."""
        return {
            host_interface(member.endpoint.endpoint_id)[0] for member in self if member.is_bridged
        }

    def publications(self) -> list[Publication]:
        """Return all published ports."""
        return [item for member in self for item in member.publications]
