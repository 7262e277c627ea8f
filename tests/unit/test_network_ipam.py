"""Subnets and addresses: what is given, what is refused, what never happens."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskd.domain.network import IpamConfig
from deskd.errors import Forbidden, InvalidArgument, ResourceExhausted
from deskd.network.ipam import (
    DEFAULT_POOLS,
    Address,
    AddressSpace,
    Pool,
    check_config,
    choose_subnet,
    hardware_address,
)


def space(subnet: str = "10.1.0.0/29", **more: Any) -> AddressSpace:
    return AddressSpace(check_config(IpamConfig(subnet=subnet, **more)))


def test_first_default_subnet_is_dockers() -> None:
    assert str(choose_subnet(DEFAULT_POOLS, [])) == "172.17.0.0/16"


def test_subnet_steps_over_everything_the_machine_routes() -> None:
    taken = [IPv4Network("172.16.0.0/14"), IPv4Network("172.20.5.0/24")]
    assert str(choose_subnet(DEFAULT_POOLS, taken)) == "172.21.0.0/16"


def test_exhausted_pools_say_what_to_do() -> None:
    pools = [Pool(IPv4Network("10.0.0.0/24"), 25)]
    taken = [IPv4Network("10.0.0.0/25"), IPv4Network("10.0.0.192/26")]
    with pytest.raises(ResourceExhausted, match="remove a network"):
        choose_subnet(pools, taken)


def test_gateway_is_the_first_address_and_the_container_gets_the_second() -> None:
    addresses = space()
    assert str(addresses.plan.gateway) == "10.1.0.1"
    assert str(addresses.allocate()) == "10.1.0.2"


def test_lowest_free_address_comes_first() -> None:
    addresses = space()
    first, second = addresses.allocate(), addresses.allocate()
    addresses.release(first)
    assert addresses.allocate() == first
    assert addresses.allocate() == second + 1


def test_full_subnet_names_itself() -> None:
    addresses = space("10.1.0.0/30")
    addresses.allocate()
    with pytest.raises(ResourceExhausted, match=r"10\.1\.0\.0/30"):
        addresses.allocate()


def test_range_limits_automatic_addresses_only() -> None:
    addresses = space("10.1.0.0/16", ip_range="10.1.4.0/30")
    assert [str(addresses.allocate()) for _ in range(4)] == [f"10.1.4.{n}" for n in range(4)]
    with pytest.raises(ResourceExhausted):
        addresses.allocate()
    assert str(addresses.reserve("10.1.9.9")) == "10.1.9.9"


def test_auxiliary_addresses_and_given_gateway_are_left_out() -> None:
    plan = check_config(
        IpamConfig(
            subnet="10.1.0.0/29",
            gateway="10.1.0.3",
            auxiliary_addresses={"router": "10.1.0.1", "printer": "10.1.0.4"},
        )
    )
    addresses = AddressSpace(plan)
    assert [str(addresses.allocate()) for _ in range(3)] == ["10.1.0.2", "10.1.0.5", "10.1.0.6"]


@pytest.mark.parametrize(
    ("address", "error", "text"),
    [
        ("10.1.0.1", Forbidden, "already in use"),
        ("10.2.0.1", InvalidArgument, "no configured subnet"),
        ("ten", InvalidArgument, "invalid IP address ten"),
    ],
)
def test_refused_fixed_addresses(address: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        space().reserve(address)


@pytest.mark.parametrize(
    "config",
    [
        IpamConfig(subnet="10.1.0.5/24"),
        IpamConfig(subnet="10.1.0.0/33"),
        IpamConfig(subnet="10.1.0.0/31"),
        IpamConfig(subnet="fd00::/127"),
        IpamConfig(subnet="fd00::/64", gateway="10.1.0.1"),
        IpamConfig(subnet="fd00::/64", ip_range="10.1.0.0/28"),
        IpamConfig(subnet="127.0.0.0/8"),
        IpamConfig(subnet="\x1b[31m"),
        IpamConfig(subnet="10.1.0.0/24", gateway="10.2.0.1"),
        IpamConfig(subnet="10.1.0.0/24", gateway="10.1.0.255"),
        IpamConfig(subnet="10.1.0.0/24", ip_range="10.2.0.0/28"),
        IpamConfig(subnet="10.1.0.0/24", auxiliary_addresses={"x": "nine"}),
        IpamConfig(subnet="10.1.0.0/24", gateway="10.1.0.9", auxiliary_addresses={"x": "10.1.0.9"}),
    ],
)
def test_nonsense_configurations_are_invalid_arguments(config: IpamConfig) -> None:
    with pytest.raises(InvalidArgument):
        check_config(config)


def test_hardware_address_follows_the_address() -> None:
    assert hardware_address(IPv4Address("172.17.0.2")) == "02:42:ac:11:00:02"


@given(st.lists(st.tuples(st.sampled_from(["allocate", "release", "reserve"]), st.integers(0, 15))))
def test_no_address_is_ever_given_twice(steps: list[tuple[str, int]]) -> None:
    addresses = space("10.1.0.0/28")
    given_out: set[Address] = set()
    for verb, number in steps:
        wanted = IPv4Address("10.1.0.0") + number
        if verb == "release":
            addresses.release(wanted)
            given_out.discard(wanted)
            continue
        try:
            got = addresses.allocate() if verb == "allocate" else addresses.reserve(str(wanted))
        except (ResourceExhausted, Forbidden):
            usable = {IPv4Address("10.1.0.0") + n for n in range(2, 15)}
            assert given_out == usable if verb == "allocate" else wanted not in usable - given_out
            continue
        assert got not in given_out
        if verb == "allocate":
            lower = {IPv4Address("10.1.0.0") + n for n in range(2, int(got) & 15)}
            assert lower <= given_out
        given_out.add(got)
    assert addresses.used == given_out
