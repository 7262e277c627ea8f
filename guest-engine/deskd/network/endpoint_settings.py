"""What an endpoint's settings say, besides addresses: its names, links and published ports."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address

import msgspec

from deskd.domain.container import EndpointSettings, PortBinding
from deskd.domain.network import Endpoint, EndpointRequest, NetworkRecord
from deskd.network.firewall import Publication
from deskd.network.name_table import NamedEndpoint
from deskd.record import replace


def dns_names(request: EndpointRequest) -> list[str]:
    """Return everything that a container is called in a network: ``DNSNames`` of inspect."""
    names = [
        request.container_name,
        *(request.settings.aliases or []),
        request.container_id[:12],
        request.hostname,
    ]
    return [name for name in dict.fromkeys(names) if name]


def with_dns_names(endpoint: Endpoint, names: list[str]) -> Endpoint:
    """Return an endpoint with other names."""
    return replace(endpoint, settings=msgspec.structs.replace(endpoint.settings, dns_names=names))


def named(
    container_id: str, container_name: str, network: NetworkRecord, endpoint: Endpoint
) -> NamedEndpoint:
    """Return an endpoint as the name server knows it."""
    settings = endpoint.settings
    return NamedEndpoint(
        container_id=container_id,
        container_name=container_name,
        network_id=network.id,
        network_name=network.name,
        address=IPv4Address(settings.ip_address),
        names=tuple(settings.dns_names or ()),
        links=_links(settings),
        leads_out=not network.internal,
    )


def _links(settings: EndpointSettings) -> tuple[tuple[str, str], ...]:
    """Read ``CONTAINER[:ALIAS]``: the names that only this container uses."""
    pairs = [link.partition(":") for link in settings.links or ()]
    return tuple((alias.lower() or name.lower(), name.lower()) for name, _, alias in pairs)


def port_bindings(publications: Sequence[Publication]) -> dict[str, tuple[PortBinding, ...]]:
    """Return published ports by ``PORT/PROTOCOL``, as inspect shows them."""
    found: dict[str, tuple[PortBinding, ...]] = {}
    for item in publications:
        key = f"{item.container_port}/{item.protocol}"
        binding = PortBinding(host_ip=str(item.host_address), host_port=str(item.host_port))
        found[key] = (*found.get(key, ()), binding)
    return found
