"""Networks with IPv6: addresses, routes, published ports, isolation, and what is refused."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest

from deskd.domain.container import EndpointIpamConfig, EndpointSettings, PortBinding
from deskd.domain.network import Ipam, IpamConfig, NetworkCreateRequest
from deskd.errors import DeskdError, Forbidden, InvalidArgument, ResourceExhausted, Unsupported
from deskd.network import bridge
from deskd.network.firewall import ANY, ANY_IPV6
from deskd.network.ports import HostPorts, Target
from deskd.network.service import NetworkService
from deskd.settings import Settings
from tests.engine.network_machine import (
    ROOT,
    connect_outside,
    engine,
    fetch,
    inside,
    publish,
    request,
    set_br_netfilter,
    shell,
    tables,
)
from tests.engine_process import until
from tests.network_namespaces import containers, in_namespace, link_names, run_in_namespace
from tests.network_records import MemoryRecords

pytestmark = pytest.mark.root

TARGET = Target(IPv4Address("172.17.0.2"), IPv6Address("fd00:17::2"))


def network(
    name: str, *subnets: str, ipv4: bool = True, internal: bool = False
) -> NetworkCreateRequest:
    configs = [IpamConfig(subnet=subnet) for subnet in subnets]
    return NetworkCreateRequest(
        name=name, enable_ipv4=ipv4, enable_ipv6=True, ipam=Ipam(config=configs), internal=internal
    )


def test_containers_of_a_dual_stack_network_talk_in_both_families() -> None:
    async def body() -> None:
        async with engine() as service:
            await service.create(network("dual", "172.28.0.0/16", "fd00:28::/64"))
            assert (await service.inspect("dual")).ipam.config == [
                IpamConfig(subnet="172.28.0.0/16", gateway="172.28.0.1"),
                IpamConfig(subnet="fd00:28::/64", gateway="fd00:28::1"),
            ]
            with containers(2) as (first, second):
                one = await service.join(request(1, "dual"))
                fixed = EndpointSettings(ipam_config=EndpointIpamConfig(ipv6_address="fd00:28::99"))
                two = await service.join(request(2, "dual", settings=fixed))
                assert one.settings.global_ipv6_address == "fd00:28::2"
                assert one.settings.global_ipv6_prefix_len == 64
                assert one.settings.ipv6_gateway == "fd00:28::1"
                assert two.settings.global_ipv6_address == "fd00:28::99"
                first.join(one)
                second.join(two)
                first.listen("tcp", 80, "first")
                assert second.fetch("tcp", "fd00:28::2", 80) == "first fd00:28::99"
                assert second.fetch("tcp", "172.28.0.2", 80) == "first 172.28.0.3"
                defaults = [r for r in first.routes(6) if r["dst"] == "default"]
                assert [r["gateway"] for r in defaults] == ["fd00:28::1"]
                settings = "/proc/sys/net/ipv6/conf/eth0/accept_ra"
                assert inside(first, f"cat {settings}") == "0\n"
                members = (await service.inspect("dual")).containers
                assert members[f"{2:064x}"].ipv6_address == "fd00:28::99/64"
                assert members[f"{2:064x}"].ipv4_address == "172.28.0.3/16"
                with pytest.raises(Forbidden, match="fd00:28::99"):
                    await service.join(request(3, "dual", settings=fixed))
            for number in (1, 2):
                await service.leave(f"{number:064x}", one.network_id)
            await service.interfaces_removed()
            before = link_names()
            removed = await service.remove("dual")
            assert link_names() == before - {f"br-{removed.id[:12]}"}
            assert "fd00:28" not in shell("nft list ruleset") + shell("ip -6 route")
        assert tables() == []

    run_in_namespace(body)


@pytest.mark.parametrize("br_netfilter", [False, True])
def test_port_published_in_ipv6_answers_from_everywhere(br_netfilter: bool) -> None:
    async def body() -> None:
        set_br_netfilter(enabled=br_netfilter)
        async with engine() as service:
            await service.create(network("dual", "172.28.0.0/16", "fd00:28::/64"))
            await service.create(network("other", "172.29.0.0/16", "fd00:29::/64"))
            with containers(4) as (web, neighbour, stranger, outside):
                connect_outside(outside)
                ports = (publish("8080"), publish("5353", 53, "udp"), publish("", 90, host_ip="::"))
                endpoint = await service.join(request(1, "dual", *ports))
                assert endpoint.ports["80/tcp"] == (
                    PortBinding(host_ip="0.0.0.0", host_port="8080"),
                    PortBinding(host_ip="::", host_port="8080"),
                )
                assert [item.host_ip for item in endpoint.ports["90/tcp"]] == ["::"]
                web.join(endpoint)
                neighbour.join(await service.join(request(2, "dual")))
                stranger.join(await service.join(request(3, "other")))
                web.listen("tcp", 80, "web")
                web.listen("udp", 53, "dns")
                outside.listen("tcp", 80, "outside")
                assert fetch("2001:db8::1", 8080).startswith("web ")
                assert fetch("2001:db8::1", 5353, socket.SOCK_DGRAM).startswith("dns ")
                assert outside.fetch("tcp", "2001:db8::1", 8080) == "web 2001:db8::2"
                assert outside.fetch("udp", "2001:db8::1", 5353) == "dns 2001:db8::2"
                for who in (neighbour, stranger, web):
                    assert who.fetch("tcp", "2001:db8::1", 8080).startswith("web "), who
                assert stranger.fetch("tcp", "fd00:28::2", 80, 0.4) == "error: TimeoutError"
                inside(outside, "ip route add fd00:28::/64 via 2001:db8::1")
                assert outside.fetch("tcp", "fd00:28::2", 80, 0.4) == "error: TimeoutError"
                # What goes out has the machine's address: nobody there knows a way back to ours.
                assert web.fetch("tcp", "2001:db8::2", 80) == "outside 2001:db8::1"
                await service.leave(f"{1:064x}", endpoint.network_id)
                with pytest.raises(OSError, match="refused"):
                    fetch("2001:db8::1", 8080)
            for number, name in ((2, "dual"), (3, "other")):
                await service.leave(f"{number:064x}", (await service.inspect(name)).id)

    run_in_namespace(body)


def test_published_port_answers_at_the_ipv6_loopback_also_for_an_ipv4_container() -> None:
    async def body() -> None:
        async with engine() as service:
            await service.create(network("dual", "172.28.0.0/16", "fd00:28::/64"))
            with containers(2) as (dual, plain):
                for number, container, name, ports in (
                    (1, dual, "dual", (publish("8080"), publish("5353", 53, "udp"))),
                    (
                        2,
                        plain,
                        "bridge",
                        (publish("8081", host_ip="::1"), publish("5354", 53, "udp")),
                    ),
                ):
                    container.join(await service.join(request(number, name, *ports)))
                    container.listen("tcp", 80, name)
                    container.listen("udp", 53, name)
                assert (await _fetch("::1", 8080)).startswith("dual ")
                assert (await _fetch("::1", 8081)).startswith("bridge ")
                for port, name in ((5353, "dual"), (5354, "bridge")):
                    for _ in range(2):  # the second client has a flow of its own
                        answer = await _fetch("::1", port, socket.SOCK_DGRAM)
                        assert answer.startswith(f"{name} ")
                shell("ip address add 2001:db8:5::1/64 dev lo nodad")
                # The kernel takes the address a moment later, and drops what comes until then.
                until(lambda: "2001:db8:5::1 " in shell("ip -6 route show table local"))
                # It answers with the address that was asked: the client's socket takes no other.
                answer = await _fetch("2001:db8:5::1", 5354, socket.SOCK_DGRAM)
                assert answer.startswith("bridge ")
            for number, name in ((1, "dual"), (2, "bridge")):
                await service.leave(f"{number:064x}", (await service.inspect(name)).id)
                with pytest.raises(OSError, match="refused"):
                    await _fetch("::1", 8079 + number)

    run_in_namespace(body)


async def _fetch(host: str, port: int, kind: int = socket.SOCK_STREAM) -> str:
    """Ask as the machine itself while the engine's loop runs on."""
    return await asyncio.to_thread(fetch, host, port, kind)


def test_network_of_ipv6_alone_and_one_without_a_way_out() -> None:
    async def body() -> None:
        async with engine() as service:
            await service.create(network("six", "fd00:6::/64", ipv4=False))
            await service.create(network("inner", "fd00:7::/64", ipv4=False, internal=True))
            with containers(3) as (one, two, outside):
                connect_outside(outside)
                outside.listen("tcp", 80, "outside")
                endpoint = await service.join(request(1, "six"))
                assert endpoint.settings.ip_address == ""
                one.join(endpoint)
                assert [a["family"] for a in one.interfaces()["eth0"]["addr_info"]].count(
                    "inet"
                ) == 0
                assert one.fetch("tcp", "2001:db8::2", 80).startswith("outside ")
                inner = await service.join(request(2, "inner"))
                assert inner.settings.ipv6_gateway == ""
                two.join(inner)
                assert two.fetch("tcp", "2001:db8::2", 80, 0.4) == "error: OSError"
                inside(two, "ip route add default via fd00:7::1")
                assert two.fetch("tcp", "2001:db8::2", 80, 0.4) == "error: TimeoutError"
            await service.leave(f"{1:064x}", endpoint.network_id)
            await service.leave(f"{2:064x}", inner.network_id)

    run_in_namespace(body)


def test_chosen_subnets_are_private_the_engines_own_and_free() -> None:
    async def body() -> None:
        async with engine(ipv6=True) as service:
            default = [c.subnet for c in (await service.inspect("bridge")).ipam.config or ()]
            await service.create(network("dual"))
            chosen = [c.subnet for c in (await service.inspect("dual")).ipam.config or ()]
            first, second = (IPv6Network(subnets[1]) for subnets in (default, chosen))
            private = IPv6Network("fc00::/7")
            assert first.subnet_of(private)
            assert second.subnet_of(private)
            assert first.supernet(new_prefix=48) == second.supernet(new_prefix=48)
            # A subnet that the machine uses for something else is passed over.
            taken = IPv6Network((int(second.network_address) + 2**64, 64))
            shell(f"ip address add {taken[1]}/64 dev lo")
            await service.create(network("third"))
            third = [c.subnet for c in (await service.inspect("third")).ipam.config or ()][1]
            assert not any(ip_network(third).overlaps(one) for one in (first, second, taken))
            fixed = EndpointIpamConfig(ipv6_address=str(second[9]))
            settings = EndpointSettings(ipam_config=fixed)
            with pytest.raises(InvalidArgument, match="user configured subnets"):
                await service.join(request(1, "dual", settings=settings))

    run_in_namespace(body)


def test_restarted_engine_takes_up_ipv6_endpoints_and_relays() -> None:
    async def body() -> None:
        records = MemoryRecords()
        killed = NetworkService(Settings(data_root=ROOT), records)
        await killed.ready()
        await killed.create(network("dual", "172.28.0.0/16", "fd00:28::/64"))
        with containers(1) as (web,):
            endpoint = await killed.join(request(1, "dual", publish("8080")))
            web.join(endpoint)
            web.listen("tcp", 80, "web")
            await killed._publishing.close()  # what the end of its process does
            restarted = NetworkService(Settings(data_root=ROOT), records)
            await restarted.restore([(f"{1:064x}", endpoint)])
            await restarted.ready()
            assert (await _fetch("::1", 8080)).startswith("web ")
            assert fetch("127.0.0.1", 8080).startswith("web ")
            new = await restarted.join(request(2, "dual"))
            assert new.settings.global_ipv6_address == "fd00:28::3"
            for number in (1, 2):
                await restarted.leave(f"{number:064x}", endpoint.network_id)
            await restarted.close()
        assert link_names() == {"lo"}
        assert tables() == []

    run_in_namespace(body)


def test_machine_keeps_the_ipv6_that_routers_give_it() -> None:
    async def body() -> None:
        shell("ip link add up0 type veth peer name out0")
        accepting = Path("/proc/sys/net/ipv6/conf/up0/accept_ra")
        accepting.write_text("1")
        async with engine() as service:
            await service.create(NetworkCreateRequest(name="four"))
            assert accepting.read_text() == "1\n", "an engine without IPv6 networks changes nothing"
            await service.create(network("six"))
            assert accepting.read_text() == "2\n"
            assert Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text() == "1\n"

    run_in_namespace(body)


@pytest.mark.parametrize(
    ("subnets", "error", "text"),
    [
        (("172.30.0.0/16", "fd00:28::/72"), Forbidden, "network taken"),
        (("172.30.0.0/16", "fd00:1::/64", "fd00:2::/64"), Forbidden, "one IPv6 subnet"),
        (("172.30.0.0/16", "2001:db8:9::/64"), Forbidden, "interface lo"),
        (("172.30.0.0/16", "fd00:1::/127"), InvalidArgument, "/126 or more"),
        (("172.30.0.0/16", "fe80:1::/64"), InvalidArgument, "reserved"),
        (("172.30.0.0/16", "ff02::/64"), InvalidArgument, "reserved"),
        (("172.30.0.0/16", "fd00::1/64"), InvalidArgument, "should be fd00::/64"),
        (("172.30.0.0/16", "fd00:::/64"), InvalidArgument, "fd00:28::/64"),
    ],
)
def test_refused_networks_leave_nothing(
    subnets: tuple[str, ...], error: type[DeskdError], text: str
) -> None:
    async def body() -> None:
        shell("ip address add 2001:db8:9::1/64 dev lo")
        async with engine() as service:
            await service.create(network("taken", "172.28.0.0/16", "fd00:28::/64"))
            before, rules = link_names(), shell("nft list ruleset")
            with pytest.raises(error, match=text):
                await service.create(network("new", *subnets))
            assert (link_names(), shell("nft list ruleset")) == (before, rules)
            assert len(await service.list_networks()) == 4

    run_in_namespace(body)


def test_kernel_without_ipv6_is_named_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "IPV6_SETTINGS", "/proc/sys/net/no-such-family")

    async def body() -> None:
        async with engine() as service:
            before = link_names()
            with pytest.raises(Unsupported, match=r"CONFIG_IPV6.*ipv6\.disable=1"):
                await service.create(network("six"))
            assert link_names() == before
            await service.create(NetworkCreateRequest(name="four"))

    run_in_namespace(body)


def test_ports_are_held_in_both_families_or_in_none() -> None:
    def body() -> None:
        ports = HostPorts()
        both = ports.hold_all([publish("")], TARGET)
        assert [item.host_address for item in both] == [ANY, ANY_IPV6]
        assert [item.container_address for item in both] == [TARGET.ipv4, TARGET.ipv6]
        assert len({item.host_port for item in both}) == 1
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            busy = server.getsockname()[1]
            with pytest.raises(ResourceExhausted, match="port is already allocated"):
                ports.hold_all([publish(str(busy))], TARGET)
            with socket.create_server(("0.0.0.0", busy)):
                pass
        ports.close()

    in_namespace(body)


def test_address_of_a_family_that_the_container_lacks_is_not_for_sctp() -> None:
    def body() -> None:
        ports = HostPorts()
        plain = Target(IPv4Address("172.17.0.2"))
        (relayed,) = ports.hold_all([publish("", host_ip="::1")], plain)
        assert (relayed.container_address, relayed.is_relayed) == (plain.ipv4, True)
        with pytest.raises(InvalidArgument, match="only TCP and UDP are there"):
            ports.hold_all([publish("", 53, "sctp", host_ip="::1")], plain)
        ports.close()

    in_namespace(body)
