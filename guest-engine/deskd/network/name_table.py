"""Which names mean which addresses, as each container sees them. Pure: no input or output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import msgspec

from deskd.network.ipam import Address

K = TypeVar("K")


class NamedEndpoint(msgspec.Struct, frozen=True):
    """One container's place in one user-defined network. ``names`` are all that it is called
    there; ``links`` are names that only it uses, for names that others have."""

    container_id: str
    container_name: str
    network_id: str
    network_name: str
    addresses: tuple[Address, ...]
    names: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    leads_out: bool = True


class NameTable:
    """The endpoints of all user-defined networks. ``changed`` is called after each change."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._by_container: dict[str, dict[str, NamedEndpoint]] = {}
        self._names: dict[tuple[str, str], list[NamedEndpoint]] = {}
        self._addresses: dict[Address, list[NamedEndpoint]] = {}

    def add(self, endpoint: NamedEndpoint) -> None:
        """Add an endpoint, or replace the one of this container in this network."""
        self.remove(endpoint.container_id, endpoint.network_id)
        self._by_container.setdefault(endpoint.container_id, {})[endpoint.network_id] = endpoint
        for key in _keys(endpoint):
            self._names.setdefault(key, []).append(endpoint)
        for address in endpoint.addresses:
            self._addresses.setdefault(address, []).append(endpoint)
        self._changed()

    def remove(self, container_id: str, network_id: str) -> None:
        """Take an endpoint away; idempotent."""
        networks = self._by_container.get(container_id, {})
        endpoint = networks.pop(network_id, None)
        if endpoint is None:
            return
        if not networks:
            del self._by_container[container_id]
        for key in _keys(endpoint):
            _take(self._names, key, endpoint)
        for address in endpoint.addresses:
            _take(self._addresses, address, endpoint)
        self._changed()

    def endpoints(self, container_id: str) -> list[NamedEndpoint]:
        """Return a container's endpoints in the order in which it joined."""
        return list(self._by_container.get(container_id, {}).values())

    def leads_out(self, container_id: str) -> bool:
        """Tell whether one of a container's networks leads out; with none the question is open."""
        own = self._by_container.get(container_id)
        return not own or any(endpoint.leads_out for endpoint in own.values())

    def look_up(self, container_id: str, name: str) -> tuple[Address, ...]:
        """Return the addresses of both families that a name means to a container, none where it
        means nothing.

        ``name`` is in lower case and without its final dot. It may be followed by the name of a
        network. Several containers may share it.
        """
        own = self._by_container.get(container_id)
        if not own:
            return ()
        for endpoint in own.values():
            found = self._in_network(endpoint, name)
            if found:
                return _addresses(found)
        position = name.find(".")
        while position > 0:
            network = name[position + 1 :]
            for endpoint in own.values():
                if endpoint.network_name.lower() == network:
                    found = self._in_network(endpoint, name[:position])
                    if found:
                        return _addresses(found)
            position = name.find(".", position + 1)
        return ()

    def _in_network(self, asking: NamedEndpoint, name: str) -> list[NamedEndpoint]:
        target = dict(asking.links).get(name, name)
        return self._names.get((asking.network_id, target), [])

    def reverse(self, container_id: str, address: Address) -> str:
        """Return ``CONTAINER.NETWORK`` for an address in one of the asking container's networks,
        else ``""``."""
        own: Mapping[str, NamedEndpoint] = self._by_container.get(container_id, {})
        for endpoint in self._addresses.get(address, ()):
            if endpoint.network_id in own:
                return f"{endpoint.container_name}.{endpoint.network_name}"
        return ""


def _addresses(found: list[NamedEndpoint]) -> tuple[Address, ...]:
    return tuple(dict.fromkeys(item for endpoint in found for item in endpoint.addresses))


def _keys(endpoint: NamedEndpoint) -> Iterable[tuple[str, str]]:
    return dict.fromkeys((endpoint.network_id, name.lower()) for name in endpoint.names)


def _take(table: dict[K, list[NamedEndpoint]], key: K, endpoint: NamedEndpoint) -> None:
    kept = [item for item in table[key] if item is not endpoint]
    if kept:
        table[key] = kept
    else:
        del table[key]
