"""Addresses: which subnet a network gets, which address an endpoint gets. Pure rules, no I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from deskd.domain.network import IpamConfig
from deskd.errors import Forbidden, InvalidArgument, ResourceExhausted

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network

MINIMUM_ADDRESSES = 4  # network address, broadcast, gateway and one container
_PRIVATE_GROUP_BYTES = 5


class Pool(msgspec.Struct, frozen=True):
    """Where networks without a subnet of their own get one: ``base`` cut in ``/size`` pieces."""

    base: Subnet
    size: int

    def subnets(self) -> Iterator[Subnet]:
        """Yield the pool's subnets in order."""
        return iter(self.base.subnets(new_prefix=self.size))


DEFAULT_POOLS = (
    *(Pool(ipaddress.IPv4Network(f"172.{second}.0.0/16"), 16) for second in range(17, 32)),
    Pool(ipaddress.IPv4Network("192.168.0.0/16"), 20),
)
"""Docker's: 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16 in /20 pieces."""


def private_pool(identity: str) -> Pool:
    """Return an engine's own IPv6 pool: a /48 of unique local addresses in /64 pieces (RFC 4193).

    ``identity`` is random and kept, 10 hexadecimal digits of it at least.
    """
    group = bytes.fromhex(identity[: 2 * _PRIVATE_GROUP_BYTES])
    return Pool(ipaddress.IPv6Network((b"\xfd" + group + bytes(10), 48)), 64)


def overlap(one: Subnet, other: Subnet) -> bool:
    """Tell whether two subnets share addresses; those of different families never do."""
    return one.version == other.version and (
        one.network_address in other or other.network_address in one
    )


def choose_subnet(pools: Sequence[Pool], taken: Iterable[Subnet]) -> Subnet:
    """Return the first subnet of the pools that overlaps none of ``taken``.

    Raises ``ResourceExhausted`` where there is none left.
    """
    occupied = list(taken)
    for pool in pools:
        for subnet in pool.subnets():
            if not any(overlap(subnet, other) for other in occupied):
                return subnet
    raise ResourceExhausted(
        "all predefined address pools have been fully subnetted: remove a network that is not "
        "used, give --subnet, or start the engine with another --default-address-pool"
    )


def hardware_address(address: Address) -> str:
    """Return the locally administered MAC that belongs to an address.

    Neighbours' caches stay right when an address passes to the next container.
    """
    return "02:42:" + ":".join(f"{byte:02x}" for byte in address.packed[-4:])


class SubnetPlan(msgspec.Struct, frozen=True):
    """One checked IPAM configuration."""

    subnet: Subnet
    gateway: Address
    ip_range: Subnet
    auxiliary: tuple[Address, ...] = ()

    def config(self, given: IpamConfig | None = None) -> IpamConfig:
        """Return the plan as the API shows it; ``given`` keeps what was left out left out."""
        return IpamConfig(
            subnet=str(self.subnet),
            gateway=str(self.gateway),
            ip_range=given.ip_range if given else "",
            auxiliary_addresses=given.auxiliary_addresses if given else None,
        )


def parse_subnet(text: str) -> Subnet:
    """Read a subnet; host bits are an error, as in Docker, and so is a missing length."""
    try:
        if "/" not in text:
            raise ValueError("no length")
        interface = ipaddress.ip_interface(text)
    except ValueError as error:
        raise InvalidArgument(
            f"invalid subnet {text}: invalid CIDR block notation; write it as 172.28.0.0/16 or "
            "fd00:28::/64"
        ) from error
    if interface.ip != interface.network.network_address:
        raise InvalidArgument(f"invalid subnet {text}: it should be {interface.network}")
    return interface.network


def check_config(config: IpamConfig) -> SubnetPlan:
    """Check one IPAM configuration that names its subnet; raises ``InvalidArgument``."""
    subnet = parse_subnet(config.subnet)
    if subnet.num_addresses < MINIMUM_ADDRESSES:
        raise InvalidArgument(
            f"the subnet {subnet} leaves no address for containers: use "
            f"/{subnet.max_prefixlen - 2} or more"
        )
    if subnet.is_loopback or subnet.is_multicast or (subnet.version == 6 and subnet.is_link_local):
        raise InvalidArgument(f"the subnet {subnet} is reserved: use one of the private ranges")
    ip_range = parse_subnet(config.ip_range) if config.ip_range else subnet
    if ip_range.version != subnet.version or not _lies_in(ip_range, subnet):
        raise InvalidArgument(f"the IP range {ip_range} does not lie in the subnet {subnet}")
    auxiliary = tuple(
        _address_in(text, subnet, f"auxiliary address {name}")
        for name, text in (config.auxiliary_addresses or {}).items()
    )
    if config.gateway:
        gateway = _address_in(config.gateway, subnet, "gateway")
        if gateway in auxiliary:
            raise InvalidArgument(
                f"the gateway {gateway} is an auxiliary address too: choose another"
            )
    else:
        free = (address for address in subnet.hosts() if address not in auxiliary)
        gateway = next(free)
    return SubnetPlan(subnet, gateway, ip_range, auxiliary)


def _lies_in(inner: Subnet, outer: Subnet) -> bool:
    return inner.network_address in outer and inner.prefixlen >= outer.prefixlen


def _unusable(subnet: Subnet) -> tuple[Address, ...]:
    """Return the addresses that mean more than one interface: IPv6 knows no broadcast."""
    if subnet.version == 4:
        return subnet.network_address, subnet.broadcast_address
    return (subnet.network_address,)


def _address_in(text: str, subnet: Subnet, what: str) -> Address:
    try:
        address = ipaddress.ip_address(text.partition("/")[0])
    except ValueError as error:
        raise InvalidArgument(f"the {what} {text} is not an IP address") from error
    if address not in subnet or address in _unusable(subnet):
        raise InvalidArgument(f"the {what} {text} is no usable address of the subnet {subnet}")
    return address


class AddressSpace:
    """The addresses of one subnet: the lowest free one is given first, as Docker does.

    A cursor remembers below which address nothing is free, so that giving stays cheap in a full
    subnet.
    """

    def __init__(self, plan: SubnetPlan) -> None:
        self.plan = plan
        self._reserved = {
            *(int(address) for address in _unusable(plan.subnet)),
            int(plan.gateway),
            *(int(address) for address in plan.auxiliary),
        }
        self._used: set[int] = set()
        self._first = int(plan.ip_range.network_address)
        self._last = int(plan.ip_range.broadcast_address)
        self._cursor = self._first

    def is_full(self) -> bool:
        """Tell whether the range has no free address left."""
        occupied = self._reserved | self._used
        numbers = range(self._cursor, self._last + 1)
        return all(number in occupied for number in numbers)

    def allocate(self) -> Address:
        """Give the lowest free address of the range; ``ResourceExhausted`` when there is none."""
        for number in range(self._cursor, self._last + 1):
            if number not in self._reserved and number not in self._used:
                self._used.add(number)
                self._cursor = number + 1
                return self._address(number)
        self._cursor = self._last + 1
        raise ResourceExhausted(
            f"no available IPv{self.plan.subnet.version} addresses in {self.plan.ip_range}: "
            "remove containers, or make a network with a larger subnet"
        )

    def reserve(self, text: str) -> Address:
        """Give one particular address of the subnet, also outside the range.

        Raises ``InvalidArgument`` for one outside the subnet, ``Forbidden`` for one in use.
        """
        try:
            address = ipaddress.ip_address(text)
        except ValueError as error:
            raise InvalidArgument(f"invalid IP address {text}") from error
        if address not in self.plan.subnet:
            raise InvalidArgument(
                f"no configured subnet contains the IP address {text}: use one of "
                f"{self.plan.subnet}"
            )
        number = int(address)
        if number in self._reserved or number in self._used:
            raise Forbidden(f"Address already in use: {text}; choose another one or leave it out")
        self._used.add(number)
        return address

    def release(self, address: Address) -> None:
        """Take an address back; idempotent."""
        number = int(address)
        self._used.discard(number)
        if self._first <= number < self._cursor:
            self._cursor = number

    @property
    def used(self) -> frozenset[Address]:
        """The addresses that are given."""
        return frozenset(self._address(number) for number in self._used)

    def _address(self, number: int) -> Address:
        # The type is given: a small number would else be taken for an IPv4 address.
        return type(self.plan.subnet.network_address)(number)
