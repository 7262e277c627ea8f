"""Networks of the drivers macvlan and ipvlan, upon one end of a veth pair whose other end is a
neighbour outside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deskd.domain.container import EndpointIpamConfig, EndpointSettings
from deskd.domain.network import (
    Endpoint,
    Ipam,
    IpamConfig,
    NetworkCreateRequest,
)
from deskd.errors import Conflict, DeskdError, Forbidden, InvalidArgument, NotFound, Unsupported
from deskd.kernel import netlink
from deskd.network.service import NetworkService, purge
from deskd.settings import Settings
from tests.engine.network_machine import ROOT, engine, inside, publish, request, shell
from tests.network_namespaces import Container, containers, link_names, run_in_namespace
from tests.network_records import MemoryRecords

pytestmark = pytest.mark.root

SUBNET = IpamConfig(
    subnet="192.0.2.0/24",
    gateway="192.0.2.1",
    ip_range="192.0.2.128/25",
    auxiliary_addresses={"printer": "192.0.2.128"},
)


def wish(name: str = "lan", driver: str = "macvlan", **more: Any) -> NetworkCreateRequest:
    options = {"parent": "up0", **more.pop("options", {})}
    ipam = more.pop("ipam", Ipam(config=[SUBNET]))
    return NetworkCreateRequest(name=name, driver=driver, options=options, ipam=ipam, **more)


@contextlib.asynccontextmanager
async def on_a_parent(
    number: int, records: MemoryRecords | None = None
) -> AsyncIterator[tuple[NetworkService, Container, list[Container]]]:
    """An engine on a machine with the interface ``up0``, a neighbour there (192.0.2.1 and
    2001:db8:2::1), and some containers without a network."""
    with containers(number + 1) as (outside, *others):
        shell(f"ip link add up0 type veth peer name out0 netns {outside.pid} && ip link set up0 up")
        inside(
            outside,
            "ip address add 192.0.2.1/24 dev out0 && ip link set out0 up && "
            "ip address add 2001:db8:2::1/64 dev out0 nodad && "
            "ip link set lo up && ip address add 203.0.113.9/32 dev lo",
        )
        async with engine(records) as service:
            yield service, outside, others


async def leave(service: NetworkService, *endpoints: Endpoint) -> None:
    for number, endpoint in enumerate(endpoints, 1):
        await service.leave(f"{number:064x}", endpoint.network_id)


def test_containers_are_neighbours_of_the_machines_neighbours() -> None:
    async def body() -> None:
        before = link_names()
        async with on_a_parent(2) as (service, outside, (one, two)):
            made = link_names()
            await service.create(wish())
            assert link_names() == made, "a parent that is there is used as it is"
            first = await service.join(request(1, "lan", publish("8080")))
            fixed = EndpointSettings(
                ipam_config=EndpointIpamConfig(ipv4_address="192.0.2.20"),
                mac_address="02:11:22:33:44:55",
                aliases=["db"],
            )
            second = await service.join(request(2, "lan", settings=fixed))
            assert one.join(first) == "192.0.2.129", "the range's first that is not taken"
            assert two.join(second) == "192.0.2.20"
            assert (first.settings.gateway, first.ports) == ("192.0.2.1", {})
            assert (first.settings.mac_address, first.settings.ip_prefix_len) == (
                "02:42:c0:00:02:81",
                24,
            )
            assert second.settings.dns_names == ["c2", "db", "000000000000"]
            link = two.interfaces()["eth0"]
            assert link["address"] == "02:11:22:33:44:55"
            assert link["linkinfo"]["info_kind"] == "macvlan"
            assert link["linkinfo"]["info_data"]["mode"] == "bridge"
            two.listen("tcp", 80, "two")
            outside.listen("tcp", 80, "outside")
            assert one.fetch("tcp", "192.0.2.20", 80) == "two 192.0.2.129"
            assert one.fetch("tcp", "192.0.2.1", 80) == "outside 192.0.2.129"
            assert outside.fetch("tcp", "192.0.2.20", 80) == "two 192.0.2.1"
            assert one.fetch("tcp", "203.0.113.9", 80) == "outside 192.0.2.129", "by the gateway"
            shown = (await service.inspect("lan")).containers
            assert shown[f"{2:064x}"].ipv4_address == "192.0.2.20/24"
            with pytest.raises(Forbidden, match="has active endpoints"):
                await service.remove("lan")
            await leave(service, first, second)
            again = await service.join(request(1, "lan"))
            assert again.settings.ip_address == "192.0.2.129", "given back"
            await leave(service, again)
            await service.remove("lan")
            assert link_names() == made
        assert link_names() - before <= {"up0"}

    run_in_namespace(body)


@pytest.mark.parametrize(("mode", "hairpin"), [("private", True), ("vepa", False), ("vepa", True)])
def test_modes_that_leave_containers_to_the_switch(mode: str, hairpin: bool) -> None:
    """``private``: never to each other. ``vepa``: as the switch outside allows."""

    async def body() -> None:
        async with on_a_parent(2) as (service, outside, (one, two)):
            inside(
                outside,
                "ip address flush dev out0 && ip link add br0 type bridge && "
                "ip link set out0 master br0 && "
                f"bridge link set dev out0 hairpin {'on' if hairpin else 'off'} && "
                "ip address add 192.0.2.1/24 dev br0 && ip link set br0 up",
            )
            await service.create(wish(options={"macvlan_mode": mode}))
            endpoints = [await service.join(request(number, "lan")) for number in (1, 2)]
            for container, endpoint in zip((one, two), endpoints, strict=True):
                container.join(endpoint)
            two.listen("tcp", 80, "two")
            outside.listen("tcp", 80, "outside")
            assert one.fetch("tcp", "192.0.2.1", 80) == "outside 192.0.2.129"
            reached = mode == "vepa" and hairpin
            answer = one.fetch("tcp", "192.0.2.130", 80, 60.0 if reached else 2.0)
            assert answer == ("two 192.0.2.129" if reached else "error: TimeoutError") or (
                not reached and answer == "error: OSError"  # no answer to ARP: EHOSTUNREACH
            )
            await leave(service, *endpoints)

    run_in_namespace(body)


def test_passthru_is_for_one_container() -> None:
    async def body() -> None:
        async with on_a_parent(1) as (service, outside, (one,)):
            await service.create(wish(options={"macvlan_mode": "passthru"}))
            endpoint = await service.join(request(1, "lan"))
            one.join(endpoint)
            outside.listen("tcp", 80, "outside")
            assert one.fetch("tcp", "192.0.2.1", 80) == "outside 192.0.2.129"
            with pytest.raises(Forbidden, match=r"takes one container.*passthru: c1 has it"):
                await service.join(request(2, "lan"))
            with pytest.raises(Conflict, match="lan is already using parent interface up0"):
                await service.create(
                    wish("other", ipam=Ipam(config=[IpamConfig(subnet="10.1.0.0/24")]))
                )
            await leave(service, endpoint)
            again = await service.join(request(2, "lan"))
            await service.leave(f"{2:064x}", again.network_id)

    run_in_namespace(body)


def test_two_networks_and_two_families_on_one_parent() -> None:
    async def body() -> None:
        async with on_a_parent(2) as (service, outside, (one, two)):
            both = Ipam(config=[SUBNET, IpamConfig(subnet="2001:db8:2::/64")])
            await service.create(wish(enable_ipv6=True, ipam=both))
            several = [IpamConfig(subnet=f"10.{number}.0.0/24") for number in (1, 2)]
            await service.create(wish("two", ipam=Ipam(config=several), internal=True))
            first = await service.join(request(1, "lan"))
            second = await service.join(request(2, "two"))
            one.join(first)
            two.join(second)
            assert first.settings.global_ipv6_address == "2001:db8:2::2"
            assert first.settings.ipv6_gateway == "2001:db8:2::1"
            outside.listen("tcp", 80, "outside")
            assert one.fetch("tcp", "2001:db8:2::1", 80) == "outside 2001:db8:2::2"
            assert [route["gateway"] for route in one.routes(6) if route["dst"] == "default"] == [
                "2001:db8:2::1"
            ]
            assert second.settings.ip_address == "10.1.0.2"
            assert (second.settings.gateway, two.routes()[0]["dst"], len(two.routes())) == (
                "",
                "10.1.0.0/24",
                1,
            ), "an internal network has no way out"
            await leave(service, first, second)

    run_in_namespace(body)


def test_restarted_engine_takes_up_its_containers_and_their_addresses() -> None:
    async def body() -> None:
        records = MemoryRecords()
        async with on_a_parent(1, records) as (service, outside, (one,)):
            await service.create(wish())
            kept = await service.join(request(1, "lan"))
            one.join(kept)
            restarted = NetworkService(Settings(data_root=ROOT), records)
            await restarted.restore([(f"{1:064x}", kept)], {f"{1:064x}": "c1"})
            await restarted.ready()
            new = await restarted.join(request(2, "lan"))
            assert new.settings.ip_address == "192.0.2.130"
            outside.listen("tcp", 80, "outside")
            assert one.fetch("tcp", "192.0.2.1", 80) == "outside 192.0.2.129"
            await restarted.leave(f"{2:064x}", new.network_id)
            await restarted.close()
            assert one.fetch("tcp", "192.0.2.1", 80) == "outside 192.0.2.129"
            await leave(service, kept)

    run_in_namespace(body)


def test_parent_that_went_and_came_back() -> None:
    async def body() -> None:
        async with on_a_parent(1) as (service, _, (one,)):
            await service.create(wish())
            shell("ip link delete up0")
            with pytest.raises(NotFound, match="parent interface up0 was not found"):
                await service.join(request(1, "lan"))
            shell("ip link add up0 type veth peer name there && ip link set up0 up")
            endpoint = await service.join(request(1, "lan"))
            assert one.join(endpoint) == "192.0.2.129"
            await leave(service, endpoint)

    run_in_namespace(body)


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        (wish(options={"macvlan_mode": "sideways"}), InvalidArgument, "mode 'sideways' is not"),
        (wish(driver="ipvlan", options={"ipvlan_mode": "l4"}), InvalidArgument, "'l4' is not"),
        (wish(driver="ipvlan", options={"ipvlan_flag": "x"}), InvalidArgument, "flag 'x' is not"),
        (wish(options={"parent": "lo"}), InvalidArgument, "loopback interface is not a valid"),
        (wish(options={"parent": "a" * 16}), InvalidArgument, "at most 15 bytes"),
        (wish(options={"parent": "up0\x1b[31m"}), InvalidArgument, r"'up0\\x1b\[31m'"),
        (wish(options={"parent": "nope"}), NotFound, "interface nope was not found"),
        (wish(options={"parent": "nope.7"}), NotFound, "not found on the host: nope"),
        (wish(options={"parent": "up0.4095"}), InvalidArgument, "between 1-4094, received: 4095"),
        (wish(options={"parent": "port0"}), Conflict, "belongs to the bridge br0.*give br0"),
        (
            wish(ipam=Ipam(config=[IpamConfig(subnet="172.17.8.0/24")])),
            Forbidden,
            "Pool overlaps with other one on this address space",
        ),
        (
            wish(ipam=Ipam(config=[SUBNET, IpamConfig(subnet="192.0.2.64/26")])),
            Forbidden,
            "subnets 192.0.2.0/24 and 192.0.2.64/26 overlap",
        ),
    ],
)
def test_refused_networks_leave_nothing(
    request_: NetworkCreateRequest, error: type[DeskdError], text: str
) -> None:
    async def body() -> None:
        shell("ip link add br0 type bridge && ip link add port0 type veth peer name port1")
        shell("ip link set port0 master br0")
        async with on_a_parent(0) as (service, _, _others):
            before, rules = link_names(), shell("nft list ruleset")
            with pytest.raises(error, match=text):
                await service.create(request_)
            assert (link_names(), shell("nft list ruleset")) == (before, rules)
            assert len(await service.list_networks()) == 3

    run_in_namespace(body)


@pytest.mark.parametrize(
    ("kind", "option", "request_"),
    [
        ("ipvlan", "CONFIG_IPVLAN", wish(driver="ipvlan")),
        ("vlan", "CONFIG_VLAN_8021Q", wish(options={"parent": "up0.7"})),
        ("dummy", "CONFIG_DUMMY", wish(options={"parent": ""})),
    ],
)
def test_what_the_kernel_lacks_is_named_and_leaves_nothing(
    kind: str, option: str, request_: NetworkCreateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a kernel that has it, the kernel's answer is changed to what one without gives."""
    real = netlink.probe_kind

    def without(asked: str) -> bytes:
        return real("no-such-kind" if asked == kind else asked)

    async def body() -> None:
        async with on_a_parent(0) as (service, _, _others):
            monkeypatch.setattr(netlink, "probe_kind", without)
            before = link_names()
            with pytest.raises(Unsupported, match=option):
                await service.create(request_)
            assert link_names() == before
            assert len(await service.list_networks()) == 3

    run_in_namespace(body)


def test_cancelled_creation_is_whole_or_absent() -> None:
    async def body() -> None:
        async with on_a_parent(0) as (service, _, _others):
            creation = asyncio.create_task(service.create(wish()))
            await asyncio.sleep(0.001)
            creation.cancel()
            await asyncio.wait([creation])
            await service.interfaces_removed()
            found = await service.list_networks({"driver": ["macvlan"]})
            for network in found:
                await service.remove(network.id)

    run_in_namespace(body)


def test_purge_leaves_a_parent_that_is_not_the_engines() -> None:
    async def body() -> None:
        async with on_a_parent(0) as (service, _, _others):
            await service.create(wish())
            purge(ROOT)
            assert "up0" in link_names()

    run_in_namespace(body)
