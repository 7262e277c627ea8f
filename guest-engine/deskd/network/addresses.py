"""The addresses of one network: its IPv4 and IPv6 subnets, and who has what in them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from deskd.domain.container import EndpointSettings
from deskd.domain.network import IpamConfig, NetworkRecord
from deskd.errors import InvalidArgument
from deskd.network.catalog import DEFAULT_NETWORK
from deskd.network.ipam import Address, AddressSpace, SubnetPlan, check_config

VERSIONS = (4, 6)


def plans_of(record: NetworkRecord) -> tuple[SubnetPlan, ...]:
    """Return the checked subnets that a network uses. Raises ``InvalidArgument``."""
    configs = used_configs(record, record.ipam.config or ())
    return tuple(check_config(config) for config in configs)


def used_configs(record: NetworkRecord, configs: Iterable[IpamConfig]) -> list[IpamConfig]:
    """Return those with a subnet of a family that the network has."""
    return [
        config
        for config in configs
        if config.subnet and (record.enable_ipv6 if ":" in config.subnet else record.enable_ipv4)
    ]


def unused_subnets(record: NetworkRecord) -> list[str]:
    """Return the subnets of a family that the network lacks."""
    configs = record.ipam.config or []
    used = used_configs(record, configs)
    return [config.subnet for config in configs if config not in used]


class NetworkAddresses:
    """Gives and takes the addresses of one network. Not shared by threads."""

    def __init__(self, plans: Sequence[SubnetPlan]) -> None:
        self._spaces = tuple(AddressSpace(plan) for plan in plans)

    @property
    def plans(self) -> tuple[SubnetPlan, ...]:
        """The subnets, in the order in which they were given."""
        return tuple(space.plan for space in self._spaces)

    def plan_of(self, address: Address) -> SubnetPlan:
        """Return the subnet that an address lies in."""
        return next(plan for plan in self.plans if address in plan.subnet)

    def gateway(self, version: int) -> Address | None:
        """Return the gateway of the first subnet of a family."""
        return next((p.gateway for p in self.plans if p.subnet.version == version), None)

    def allocate(self, version: int) -> Address | None:
        """Give the lowest free address of a family's first subnet that has one.

        ``None`` where the network lacks this family; raises ``ResourceExhausted``.
        """
        spaces = [space for space in self._spaces if space.plan.subnet.version == version]
        for space in spaces[:-1]:
            if not space.is_full():
                return space.allocate()
        return spaces[-1].allocate() if spaces else None

    def reserve(self, text: str) -> Address:
        """Give one particular address. Raises ``InvalidArgument`` and ``Forbidden``."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError as error:
            raise InvalidArgument(f"invalid IP address {text}") from error
        for space in self._spaces:
            if address in space.plan.subnet:
                return space.reserve(text)
        subnets = ", ".join(str(plan.subnet) for plan in self.plans)
        raise InvalidArgument(
            f"no configured subnet contains the IP address {text}: use one of {subnets}"
        )

    def release(self, addresses: Iterable[Address]) -> None:
        """Take addresses back; idempotent."""
        for address in addresses:
            for space in self._spaces:
                if address in space.plan.subnet:
                    space.release(address)


def wanted_address(record: NetworkRecord, settings: EndpointSettings, version: int) -> str:
    """Return the address of a family that an endpoint asks for, empty where it takes any.

    Raises ``InvalidArgument`` where the network cannot be asked.
    """
    config = settings.ipam_config
    wanted = "" if config is None else (config.ipv4_address, config.ipv6_address)[version == 6]
    if not wanted:
        return ""
    try:
        address = ipaddress.ip_address(wanted)
    except ValueError as error:
        raise InvalidArgument(f"invalid IPv{version} address: {wanted}") from error
    if address.version != version:
        raise InvalidArgument(f"invalid IPv{version} address: {wanted}")
    if not (record.enable_ipv6 if version == 6 else record.enable_ipv4):
        raise InvalidArgument(
            f"network {record.name} has no IPv{version}: leave out the address {wanted}"
            + (", or make the network with --ipv6" if version == 6 else "")
        )
    if record.name == DEFAULT_NETWORK:
        raise InvalidArgument(
            "user specified IP address is supported on user defined networks only: make one "
            "with `docker network create --subnet`"
        )
    if record.chosen_subnet if version == 4 else record.chosen_subnet_ipv6:
        raise InvalidArgument(
            "invalid endpoint settings: user specified IP address is supported only when "
            f"connecting to networks with user configured subnets: make {record.name} with --subnet"
        )
    return wanted
