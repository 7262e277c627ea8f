"""What a container may ask of a network, checked before the container is made."""

from __future__ import annotations

from ipaddress import ip_address

from deskd.domain.container import EndpointSettings
from deskd.domain.network import NetworkRecord
from deskd.errors import InvalidArgument
from deskd.network.addresses import VERSIONS, plans_of, wanted_address
from deskd.network.catalog import DEFAULT_NETWORK
from deskd.network.endpoint_settings import checked_mac, link_local_addresses

_WITHOUT_ADDRESSES = ("host", "null")


def check_wish(record: NetworkRecord, settings: EndpointSettings) -> None:
    """Raise ``InvalidArgument`` for a wish that no start could grant, with Docker's introduction.

    Whether an address is free is only known when the container starts.
    """
    if record.driver in _WITHOUT_ADDRESSES:
        return
    try:
        _check(record, settings)
    except InvalidArgument as error:
        raise InvalidArgument(f"invalid config for network {record.name}: {error}") from error


def _check(record: NetworkRecord, settings: EndpointSettings) -> None:
    checked_mac(settings)
    link_local_addresses(settings)
    if settings.aliases and record.name == DEFAULT_NETWORK:
        raise InvalidArgument(
            "invalid endpoint settings: network-scoped alias is supported only for containers in "
            "user defined networks: make one with `docker network create`"
        )
    for version in VERSIONS:
        wanted = wanted_address(record, settings, version)
        plans = plans_of(record)
        if wanted and not any(ip_address(wanted) in plan.subnet for plan in plans):
            raise InvalidArgument(
                "invalid endpoint settings: no configured subnet contains the IP address "
                f"{wanted}: use one of {', '.join(str(plan.subnet) for plan in plans)}"
            )
