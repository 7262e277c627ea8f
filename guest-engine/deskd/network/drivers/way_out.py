"""The way out of a network, as a container's route."""

from __future__ import annotations

from deskd.domain.network import NetworkRecord
from deskd.kernel import netlink
from deskd.network.addresses import NetworkAddresses
from deskd.network.parent_options import uses_gateway


def default_route(
    record: NetworkRecord,
    given: NetworkAddresses,
    index: int,
    version: int,
    *,
    replace: bool = False,
) -> bytes:
    """Return the request that sends everything out by a container's interface in a network."""
    if not uses_gateway(record):
        return netlink.add_device_route(index, version, replace=replace)
    gateway = given.gateway(version)
    assert gateway is not None
    return netlink.add_default_route(index, gateway, replace=replace)
