"""What an endpoint's settings say, besides addresses: its names, links and published ports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address

import msgspec

from deskd.domain.container import EndpointSettings, PortBinding
from deskd.domain.network import Endpoint, EndpointRequest, NetworkContainer, NetworkRecord
from deskd.errors import InvalidArgument
from deskd.kernel import netlink
from deskd.network.firewall import Publication
from deskd.network.ipam import Address, SubnetPlan
from deskd.network.name_table import NamedEndpoint
from deskd.record import replace

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z", re.IGNORECASE)


def checked_mac(settings: EndpointSettings) -> str:
    """Return the MAC that an endpoint asks for, empty where any will do."""
    mac = settings.mac_address
    if mac and (not _MAC.match(mac) or int(mac[:2], 16) & 1):
        raise InvalidArgument(
            f"invalid MAC address {mac!r}: write a unicast one as 02:42:ac:11:00:02"
        )
    return mac.lower()


def link_local_addresses(settings: EndpointSettings) -> list[Address]:
    """Return the link-local addresses that an endpoint asks for. Raises ``InvalidArgument``."""
    config = settings.ipam_config
    addresses = []
    for text in (config.link_local_ips if config is not None else None) or ():
        try:
            address = ip_address(text)
        except ValueError as error:
            raise InvalidArgument(f"invalid link-local IP address: {text}") from error
        if not address.is_link_local:
            raise InvalidArgument(
                f"invalid link-local IP address: {text}; give one of 169.254.0.0/16 or fe80::/64"
            )
        addresses.append(address)
    return addresses


def link_local_requests(settings: EndpointSettings, interface_index: int) -> list[bytes]:
    """Return the requests that give an interface the link-local addresses that are asked for.

    Nobody else has them by this engine's doing, so they are not kept in the network's addresses.
    """
    return [
        netlink.add_address(interface_index, address, 16 if address.version == 4 else 64)
        for address in link_local_addresses(settings)
    ]


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
        addresses=addresses_of(settings),
        names=tuple(settings.dns_names or ()),
        links=_links(settings),
        leads_out=not network.internal,
    )


def addresses_of(settings: EndpointSettings) -> tuple[Address, ...]:
    """Return the addresses that were given to an endpoint, the IPv4 one first."""
    texts = (settings.ip_address, settings.global_ipv6_address)
    return tuple(ip_address(text) for text in texts if text)


def with_addresses(
    settings: EndpointSettings, given: Sequence[tuple[Address, SubnetPlan]], *, internal: bool
) -> EndpointSettings:
    """Return settings that say which addresses an endpoint has been given."""
    for address, plan in given:
        gateway = "" if internal else str(plan.gateway)
        if address.version == 4:
            settings = msgspec.structs.replace(
                settings,
                gateway=gateway,
                ip_address=str(address),
                ip_prefix_len=plan.subnet.prefixlen,
            )
        else:
            settings = msgspec.structs.replace(
                settings,
                ipv6_gateway=gateway,
                global_ipv6_address=str(address),
                global_ipv6_prefix_len=plan.subnet.prefixlen,
            )
    return settings


def described(name: str, endpoint: Endpoint) -> NetworkContainer:
    """Return an endpoint as ``network inspect`` shows it."""
    settings = endpoint.settings
    ipv4, ipv6 = settings.ip_address, settings.global_ipv6_address
    return NetworkContainer(
        name=name,
        endpoint_id=endpoint.endpoint_id,
        mac_address=settings.mac_address,
        ipv4_address=f"{ipv4}/{settings.ip_prefix_len}" if ipv4 else "",
        ipv6_address=f"{ipv6}/{settings.global_ipv6_prefix_len}" if ipv6 else "",
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
