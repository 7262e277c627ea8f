"""Networks of a whole engine on machines and containers that are real network namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deskd.domain.container import EndpointIpamConfig, EndpointSettings, HostConfig, PortBinding
from deskd.domain.network import (
    OPTION_BRIDGE_NAME,
    OPTION_INTER_CONTAINER,
    Endpoint,
    EndpointRequest,
    Ipam,
    IpamConfig,
    NetworkCreateRequest,
    PortRequest,
)
from deskd.errors import (
    DeskdError,
    Forbidden,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SystemFailure,
)
from deskd.network import bridge
from deskd.network.service import NetworkService, purge
from deskd.settings import AddressPool, Settings
from tests.network_namespaces import Container, containers, link_names, run_in_namespace
from tests.network_records import MemoryRecords

pytestmark = pytest.mark.root

ROOT = "/nonexistent/desk-test"


@contextlib.asynccontextmanager
async def engine(
    records: MemoryRecords | None = None, *, data_root: str = ROOT, **settings: Any
) -> AsyncIterator[NetworkService]:
    """An engine's networks, set up; closed at the end."""
    service = NetworkService(
        Settings(data_root=data_root, **settings),
        records if records is not None else MemoryRecords(),
    )
    try:
        await service.ready()
        yield service
    finally:
        await service.close()


def request(
    number: int, network: str = "bridge", *ports: PortRequest, **more: Any
) -> EndpointRequest:
    return EndpointRequest(f"{number:064x}", f"c{number}", network, ports=ports, **more)


def publish(
    host_port: str, container_port: int = 80, protocol: str = "tcp", host_ip: str = ""
) -> PortRequest:
    return PortRequest(
        container_port, protocol, (PortBinding(host_ip=host_ip, host_port=host_port),)
    )


def fetch(host: str, port: int, kind: int = socket.SOCK_STREAM) -> str:
    """Ask a server as the machine itself."""
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(60)
        client.connect((host, port))
        if kind == socket.SOCK_DGRAM:
            client.send(b"?")
        return client.recv(2048).decode()


def shell(command: str) -> str:
    """Run a command on the machine."""
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


def inside(container: Container, command: str) -> str:
    """Run a command in a container's network namespace."""
    return shell(f"nsenter --net=/proc/{container.pid}/ns/net sh -c '{command}'")


def tables() -> list[str]:
    return shell("nft list tables").split("\n")[:-1]


def set_br_netfilter(*, enabled: bool) -> None:
    path = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if path.exists():
        path.write_text(str(int(enabled)))
    elif enabled:
        pytest.fail("this test needs a kernel with br_netfilter")


def connect_outside(outside: Container) -> None:
    """Put a neighbour beside the machine: 203.0.113.2, the machine being 203.0.113.1."""
    shell(f"ip link add up0 type veth peer name out0 netns {outside.pid}")
    shell("ip address add 203.0.113.1/24 dev up0 && ip link set up0 up")
    inside(outside, "ip address add 203.0.113.2/24 dev out0 && ip link set out0 up")
    shell("ip route add default via 203.0.113.2")


def test_set_up_makes_bridge_and_table_and_close_leaves_nothing() -> None:
    async def body() -> None:
        before = link_names()
        async with engine() as service:
            network = await service.inspect("bridge")
            name = network.options[OPTION_BRIDGE_NAME]
            assert link_names() - before == {name}
            assert network.ipam.config == [IpamConfig(subnet="172.17.0.0/16", gateway="172.17.0.1")]
            assert [n.name for n in await service.list_networks()] == ["bridge", "host", "none"]
            assert len(tables()) == 1
            assert shell("sysctl -n net.ipv4.ip_forward") == "1\n"
        assert link_names() == before
        assert tables() == []

    run_in_namespace(body)


def test_containers_get_addresses_and_talk() -> None:
    async def body() -> None:
        async with engine() as service:
            with containers(2) as (first, second):
                one = await service.join(request(1, hostname="web"))
                two = await service.join(request(2))
                assert (first.join(one), second.join(two)) == ("172.17.0.2", "172.17.0.3")
                shown = first.interfaces()
                assert shown["eth0"]["address"] == "02:42:ac:11:00:02" == one.settings.mac_address
                assert {"UP", "LOWER_UP"} <= set(shown["eth0"]["flags"])
                assert "UP" in shown["lo"]["flags"]
                assert [item["local"] for item in shown["eth0"]["addr_info"]] == ["172.17.0.2"]
                assert {"dst": "default", "gateway": "172.17.0.1", "dev": "eth0", "flags": []} in (
                    first.routes()
                )
                first.listen("tcp", 80, "hello")
                assert second.fetch("tcp", "172.17.0.2", 80) == "hello 172.17.0.3"
                members = (await service.inspect("bridge")).containers
                assert members[f"{1:064x}"].name == "c1"
                assert members[f"{1:064x}"].ipv4_address == "172.17.0.2/16"
            for number in (1, 2):
                await service.leave(f"{number:064x}", one.network_id)
            assert (await service.inspect("bridge")).containers == {}

    run_in_namespace(body)


@pytest.mark.parametrize("br_netfilter", [False, True])
def test_published_port_answers_from_everywhere(br_netfilter: bool) -> None:
    async def body() -> None:
        set_br_netfilter(enabled=br_netfilter)
        async with engine() as service:
            await service.create(NetworkCreateRequest(name="other"))
            with containers(4) as (web, neighbour, stranger, outside):
                connect_outside(outside)
                ports = (
                    publish("8080"),
                    publish("5353", 53, "udp"),
                    publish("8081", 80, host_ip="127.0.0.1"),
                )
                endpoint = await service.join(request(1, "bridge", *ports))
                assert endpoint.ports["80/tcp"] == (
                    PortBinding(host_ip="0.0.0.0", host_port="8080"),
                    PortBinding(host_ip="127.0.0.1", host_port="8081"),
                )
                address = web.join(endpoint)
                neighbour.join(await service.join(request(2)))
                stranger.join(await service.join(request(3, "other")))
                web.listen("tcp", 80, "web")
                web.listen("udp", 53, "dns")
                assert fetch("127.0.0.1", 8080) == "web 172.17.0.1"
                assert fetch("127.0.0.1", 8081) == "web 172.17.0.1"
                assert fetch("127.0.0.1", 5353, socket.SOCK_DGRAM) == "dns 172.17.0.1"
                assert fetch("203.0.113.1", 8080).startswith("web ")
                assert outside.fetch("tcp", "203.0.113.1", 8080) == "web 203.0.113.2"
                assert outside.fetch("udp", "203.0.113.1", 5353) == "dns 203.0.113.2"
                for who in (neighbour, stranger, web):
                    assert who.fetch("tcp", "203.0.113.1", 8080).startswith("web "), who
                    assert who.fetch("udp", "203.0.113.1", 5353).startswith("dns "), who
                assert neighbour.fetch("tcp", "172.17.0.1", 8080).startswith("web ")
                assert stranger.fetch("tcp", address, 80, 0.4) == "error: TimeoutError"
                assert outside.fetch("tcp", "203.0.113.1", 8081, 0.4).startswith("error")
                await service.leave(f"{1:064x}", endpoint.network_id)
                with pytest.raises(OSError, match="refused"):
                    fetch("127.0.0.1", 8080)
            for number, network in ((2, "bridge"), (3, "other")):
                await service.leave(f"{number:064x}", (await service.inspect(network)).id)

    run_in_namespace(body)


def test_published_port_does_not_capture_connections_to_other_machines() -> None:
    async def body() -> None:
        async with engine() as service:
            with containers(3) as (web, client, outside):
                connect_outside(outside)
                outside.listen("tcp", 8080, "outside")
                web.join(await service.join(request(1, "bridge", publish("8080"))))
                client.join(await service.join(request(2)))
                web.listen("tcp", 80, "web")
                assert fetch("203.0.113.2", 8080) == "outside 203.0.113.1"
                # The source address is the machine's: masqueraded.
                assert client.fetch("tcp", "203.0.113.2", 8080) == "outside 203.0.113.1"
            for number in (1, 2):
                await service.leave(f"{number:064x}", (await service.inspect("bridge")).id)

    run_in_namespace(body)


def test_networks_are_isolated_from_each_other_and_from_outside() -> None:
    async def body() -> None:
        async with engine() as service:
            await service.create(NetworkCreateRequest(name="red"))
            await service.create(NetworkCreateRequest(name="blue"))
            with containers(3) as (red, blue, outside):
                connect_outside(outside)
                red_address = red.join(await service.join(request(1, "red")))
                blue_address = blue.join(await service.join(request(2, "blue")))
                assert (red_address, blue_address) == ("172.18.0.2", "172.19.0.2")
                red.listen("tcp", 80, "red")
                assert fetch(red_address, 80) == "red 172.18.0.1"
                assert blue.fetch("tcp", red_address, 80, 0.4) == "error: TimeoutError"
                inside(outside, "ip route add 172.18.0.0/16 via 203.0.113.1")
                assert outside.fetch("tcp", red_address, 80, 0.4) == "error: TimeoutError"
            for number, network in ((1, "red"), (2, "blue")):
                await service.leave(f"{number:064x}", (await service.inspect(network)).id)

    run_in_namespace(body)


def test_container_cannot_reach_the_machines_loopback() -> None:
    async def body() -> None:
        async with engine() as service:
            with containers(1) as (attacker,), socket.create_server(("127.0.0.1", 6000)) as server:
                attacker.join(await service.join(request(1)))
                inside(
                    attacker,
                    "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet;"
                    "ip address del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via 172.17.0.1",
                )
                shell(
                    "nft insert rule inet $(nft list tables | cut -d' ' -f3) raw "
                    "ip daddr 127.0.0.0/8 iifname != lo counter"
                )
                assert attacker.fetch("tcp", "127.0.0.1", 6000, 0.4) == "error: TimeoutError"
                server.setblocking(False)
                with pytest.raises(BlockingIOError):
                    server.accept()
                (counter,) = [
                    line for line in shell("nft list ruleset").splitlines() if "counter" in line
                ]
                assert "packets 0" not in counter, "the packets never arrived: nothing was tested"
            await service.leave(f"{1:064x}", (await service.inspect("bridge")).id)

    run_in_namespace(body)


def test_internal_network_has_no_way_out() -> None:
    async def body() -> None:
        async with engine() as service:
            await service.create(NetworkCreateRequest(name="inner", internal=True))
            with containers(3) as (one, two, outside):
                connect_outside(outside)
                outside.listen("tcp", 80, "outside")
                endpoint = await service.join(request(1, "inner"))
                assert endpoint.settings.gateway == ""
                address = one.join(endpoint)
                two.join(await service.join(request(2, "inner")))
                one.listen("tcp", 80, "one")
                assert two.fetch("tcp", address, 80).startswith("one ")
                assert one.fetch("tcp", "203.0.113.2", 80, 0.4) == "error: OSError"
                inside(one, "ip route add default via 172.18.0.1")
                inside(outside, "ip route add 172.18.0.0/16 via 203.0.113.1")
                assert one.fetch("tcp", "203.0.113.2", 80, 0.4) == "error: TimeoutError"
            for number in (1, 2):
                await service.leave(f"{number:064x}", endpoint.network_id)

    run_in_namespace(body)


@pytest.mark.parametrize("br_netfilter", [False, True])
def test_containers_without_icc_are_apart_but_publish(br_netfilter: bool) -> None:
    async def body() -> None:
        set_br_netfilter(enabled=br_netfilter)
        async with engine() as service:
            options = {OPTION_INTER_CONTAINER: "false"}
            await service.create(NetworkCreateRequest(name="apart", options=options))
            with containers(2) as (one, two):
                endpoint = await service.join(request(1, "apart", publish("8080")))
                address = one.join(endpoint)
                two.join(await service.join(request(2, "apart")))
                one.listen("tcp", 80, "one")
                assert two.fetch("tcp", address, 80, 0.4).startswith("error")
                assert fetch("127.0.0.1", 8080).startswith("one ")
            for number in (1, 2):
                await service.leave(f"{number:064x}", endpoint.network_id)

    run_in_namespace(body)


def test_busy_port_has_dockers_words_and_leaves_nothing_reserved() -> None:
    async def body() -> None:
        async with engine() as service:
            with (
                socket.create_server(("0.0.0.0", 8080)),
                pytest.raises(ResourceExhausted) as caught,
            ):
                await service.join(request(1, "bridge", publish("7000"), publish("8080")))
            assert (
                "on endpoint c1 (000000000000): Bind for 0.0.0.0:8080 failed: port is already "
                in str(caught.value)
            )
            assert "7000" not in shell("nft list ruleset")
            endpoint = await service.join(request(2, "bridge", publish("7000"), publish("8080")))
            assert endpoint.settings.ip_address == "172.17.0.2"
            with pytest.raises(ResourceExhausted, match="8080 failed"):
                await service.join(request(3, "bridge", publish("8080")))
            await service.leave(f"{2:064x}", endpoint.network_id)
            await service.leave(f"{2:064x}", endpoint.network_id)
            with socket.create_server(("0.0.0.0", 8080)):
                pass

    run_in_namespace(body)


def test_restarted_engine_takes_up_its_containers() -> None:
    async def body() -> None:
        records = MemoryRecords()
        settings = Settings(data_root=ROOT)
        killed = NetworkService(settings, records)
        await killed.ready()
        with containers(2) as (web, gone):
            kept = await killed.join(request(1, "bridge", publish("8080")))
            lost = await killed.join(request(2, "bridge", publish("9090")))
            web.join(kept)
            gone.join(lost)
            web.listen("tcp", 80, "web")
            killed._ports.close()  # what the end of its process does; the kernel keeps the rest
            assert fetch("127.0.0.1", 8080) == "web 172.17.0.1"

            restarted = NetworkService(settings, records)
            await restarted.restore([(f"{1:064x}", kept)], {f"{1:064x}": "c1"})
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("127.0.0.1", 8080))
            await restarted.ready()
            assert fetch("127.0.0.1", 8080) == "web 172.17.0.1"
            assert "9090" not in shell("nft list ruleset")
            assert bridge.host_interface(lost.endpoint_id)[0] not in link_names()
            assert (await restarted.inspect("bridge")).containers[f"{1:064x}"].name == "c1"
            new = await restarted.join(request(3))
            assert new.settings.ip_address == "172.17.0.3"
            await restarted.leave(f"{3:064x}", new.network_id)

            await restarted.close()
            assert fetch("127.0.0.1", 8080) == "web 172.17.0.1"
        purge(ROOT)
        assert link_names() == {"lo"}
        assert tables() == []
        killed._kernel.close()

    run_in_namespace(body)


def test_port_that_was_taken_meanwhile_does_not_stop_a_restart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def body() -> None:
        records = MemoryRecords()
        async with engine(records) as service:
            endpoint = await service.join(request(1, "bridge", publish("8080")))
            await service.leave(f"{1:064x}", endpoint.network_id)
        with socket.create_server(("0.0.0.0", 8080)):
            restarted = NetworkService(Settings(data_root=ROOT), records)
            await restarted.restore([(f"{1:064x}", endpoint)])
            await restarted.ready()
            await restarted.leave(f"{1:064x}", endpoint.network_id)
            await restarted.close()

    run_in_namespace(body)
    assert "0.0.0.0:8080 cannot be published again" in caplog.text
    caplog.clear()


def test_engines_side_by_side_share_nothing() -> None:
    async def body() -> None:
        async with engine(data_root="/one") as one, engine(data_root="/two") as two:
            with containers(2) as (first, second):
                a = await one.join(request(1, "bridge", publish("8001")))
                b = await two.join(request(1, "bridge", publish("8002")))
                assert (first.join(a), second.join(b)) == ("172.17.0.2", "172.18.0.2")
                first.listen("tcp", 80, "first")
                second.listen("tcp", 80, "second")
                assert fetch("127.0.0.1", 8001).startswith("first ")
                assert fetch("127.0.0.1", 8002).startswith("second ")
                assert first.fetch("tcp", "172.18.0.2", 80, 0.4) == "error: TimeoutError"
                with pytest.raises(ResourceExhausted):
                    await two.join(request(2, "bridge", publish("8001")))
            await one.leave(f"{1:064x}", a.network_id)
            await one.close()
            assert len(tables()) == 1
            await two.leave(f"{1:064x}", b.network_id)

    run_in_namespace(body)


def test_default_subnet_avoids_the_machines_networks() -> None:
    async def body() -> None:
        shell("ip address add 172.17.5.1/24 dev lo && ip route add 172.18.0.0/16 dev lo")
        async with engine() as service:
            network = await service.inspect("bridge")
            assert (network.ipam.config or [])[0].subnet == "172.19.0.0/16"

    run_in_namespace(body)


def test_bip_and_pools_are_honoured() -> None:
    async def body() -> None:
        pools = (AddressPool("10.60.0.0/16", 24),)
        async with engine(
            bip="10.50.0.9/24", bridge="mybridge", default_address_pools=pools
        ) as service:
            network = await service.inspect("bridge")
            assert network.ipam.config == [IpamConfig(subnet="10.50.0.0/24", gateway="10.50.0.9")]
            assert "mybridge" in link_names()
            await service.create(NetworkCreateRequest(name="mine"))
            mine = await service.inspect("mine")
            assert mine.ipam.config == [IpamConfig(subnet="10.60.0.0/24", gateway="10.60.0.1")]
            assert await service.host_gateway() == "10.50.0.9"

    run_in_namespace(body)


def test_interface_goes_when_its_namespace_lives_on() -> None:
    async def body() -> None:
        async with engine() as service:
            with containers(1) as (container,):
                endpoint = await service.join(request(1))
                container.join(endpoint)
                await service.leave(f"{1:064x}", endpoint.network_id)
                await service.interfaces_removed()
                assert set(container.interfaces()) == {"lo"}

    run_in_namespace(body)


def test_second_interface_of_a_running_container() -> None:
    async def body() -> None:
        async with engine() as service:
            await service.create(NetworkCreateRequest(name="second"))
            with containers(1) as (container,):
                first = await service.join(request(1))
                second = await service.join(
                    request(1, "second", interface="eth1", default_route=False)
                )
                container.join(first)
                container.join(second)
                assert {"lo", "eth0", "eth1"} == set(container.interfaces())
                assert len([r for r in container.routes() if r["dst"] == "default"]) == 1
                assert [e.network_name for e in service.endpoints_of(f"{1:064x}")] == [
                    "bridge",
                    "second",
                ]
                with pytest.raises(Forbidden, match="already in network second"):
                    await service.join(request(1, "second"))
            for endpoint in (first, second):
                await service.leave(f"{1:064x}", endpoint.network_id)

    run_in_namespace(body)


def test_none_has_a_loopback_only_and_host_nothing_to_do() -> None:
    async def body() -> None:
        service = NetworkService(Settings(data_root=ROOT), MemoryRecords())
        with containers(1) as (container,):
            container.join(await service.join(request(1, "none")))
            assert set(container.interfaces()) == {"lo"}
            assert "UP" in container.interfaces()["lo"]["flags"]
        host = await service.join(request(2, "host"))
        assert (host.script.outside, host.script.inside) == ((), ())
        assert link_names() == {"lo"}, "neither needs a bridge"
        await service.close()

    run_in_namespace(body)


def test_user_networks_come_and_go() -> None:
    async def body() -> None:
        records = MemoryRecords()
        async with engine(records) as service:
            config = IpamConfig(subnet="10.7.0.0/24", ip_range="10.7.0.128/25", gateway="10.7.0.9")
            created = await service.create(
                NetworkCreateRequest(name="mine", ipam=Ipam(config=[config]), labels={"a": "b"})
            )
            network = await service.inspect(created.id[:12])
            assert network.ipam.config == [config]
            assert f"br-{created.id[:12]}" in link_names()
            fixed = EndpointSettings(
                ipam_config=EndpointIpamConfig(ipv4_address="10.7.0.20"),
                mac_address="02:11:22:33:44:55",
                aliases=["db"],
            )
            endpoint = await service.join(request(1, "mine", settings=fixed))
            assert endpoint.settings.ip_address == "10.7.0.20"
            assert endpoint.settings.mac_address == "02:11:22:33:44:55"
            assert endpoint.settings.dns_names == ["c1", "db", "000000000000"]
            other = await service.join(request(2, "mine"))
            assert other.settings.ip_address == "10.7.0.128"
            with pytest.raises(Forbidden, match="has active endpoints"):
                await service.remove("mine")
            await service.leave(f"{2:064x}", created.id)
            await service.leave(f"{1:064x}", created.id)
        async with engine(records) as service:
            assert f"br-{created.id[:12]}" in link_names(), "a user's network is made again"
            assert [n.name for n in await service.prune()] == ["mine"]
            assert f"br-{created.id[:12]}" not in link_names()
            with pytest.raises(NotFound):
                await service.inspect("mine")
            with pytest.raises(Forbidden, match="pre-defined"):
                await service.remove("none")

    run_in_namespace(body)


def subnet(text: str) -> Ipam:
    return Ipam(config=[IpamConfig(subnet=text)])


@pytest.mark.parametrize(
    ("wish", "error", "text"),
    [
        (NetworkCreateRequest(name="x", ipam=subnet("172.17.9.0/24")), Forbidden, "network bridge"),
        (NetworkCreateRequest(name="x", ipam=subnet("127.9.0.0/16")), InvalidArgument, "reserved"),
        (NetworkCreateRequest(name="x", ipam=subnet("198.51.100.0/25")), Forbidden, "interface lo"),
        (NetworkCreateRequest(name="x", ipam=subnet("10.1.2.3/24")), InvalidArgument, "host bits"),
        (
            NetworkCreateRequest(name="x", ipam=Ipam(config=[IpamConfig(gateway="10.1.2.1")])),
            InvalidArgument,
            "need a subnet",
        ),
        (
            NetworkCreateRequest(name="x", options={OPTION_BRIDGE_NAME: "lo"}),
            DeskdError,
            "is no bridge",
        ),
    ],
)
def test_refused_networks_leave_nothing(
    wish: NetworkCreateRequest, error: type[DeskdError], text: str
) -> None:
    async def body() -> None:
        shell("ip address add 198.51.100.1/24 dev lo")
        async with engine() as service:
            before, rules = link_names(), shell("nft list ruleset")
            with pytest.raises(error, match=text):
                await service.create(wish)
            assert (link_names(), shell("nft list ruleset")) == (before, rules)
            assert len(await service.list_networks()) == 3

    run_in_namespace(body)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"mac_address": "nonsense"}, InvalidArgument, "invalid MAC address 'nonsense'"),
        ({"mac_address": "01:00:5e:00:00:01"}, InvalidArgument, "unicast"),
        (
            {"ipam_config": EndpointIpamConfig(ipv4_address="172.17.0.9")},
            InvalidArgument,
            "user defined networks only",
        ),
        ({"ipam_config": EndpointIpamConfig(ipv6_address="fd00::9")}, InvalidArgument, "no IPv6"),
    ],
)
def test_refused_endpoints_leave_nothing(
    settings: dict[str, Any], error: type[DeskdError], text: str
) -> None:
    async def body() -> None:
        async with engine() as service:
            with pytest.raises(error, match=text):
                await service.join(request(1, settings=EndpointSettings(**settings)))
            assert (await service.inspect("bridge")).containers == {}
            endpoint = await service.join(request(1))
            assert endpoint.settings.ip_address == "172.17.0.2"
            await service.leave(f"{1:064x}", endpoint.network_id)

    run_in_namespace(body)


def test_forbidden_forwarding_is_named_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "IP_FORWARD", "/proc/sys/net/ipv4/no_such_setting")

    async def body() -> None:
        service = NetworkService(Settings(data_root=ROOT), MemoryRecords())
        for _ in range(2):
            with pytest.raises(SystemFailure, match=r"sysctl -w net\.ipv4\.ip_forward=1"):
                await service.join(request(1))
        assert link_names() == {"lo"}
        assert len(await service.list_networks()) == 3
        await service.close()

    run_in_namespace(body)


def test_parallel_joins_get_distinct_addresses() -> None:
    async def body() -> None:
        service = NetworkService(Settings(data_root=ROOT), MemoryRecords())
        endpoints: list[Endpoint] = await asyncio.gather(
            *(service.join(request(n, "bridge", publish(""))) for n in range(1, 21))
        )
        assert len({e.settings.ip_address for e in endpoints}) == 20
        assert len({e.ports["80/tcp"][0].host_port for e in endpoints}) == 20
        for n in range(1, 21):
            await service.leave(f"{n:064x}", endpoints[0].network_id)
        await service.close()
        assert link_names() == {"lo"}

    run_in_namespace(body)


def test_resolv_conf_for_each_kind_of_network() -> None:
    async def body() -> None:
        service = NetworkService(
            Settings(data_root=ROOT, dns=("192.0.2.1",), dns_search=("lan",)), MemoryRecords()
        )
        plain = HostConfig()
        assert service.resolv_conf(plain, ["bridge"]).startswith(
            "nameserver 192.0.2.1\nsearch lan\n"
        )
        assert service.resolv_conf(plain, ["host"]).startswith("nameserver 192.0.2.1\nsearch lan\n")
        own = HostConfig(dns=["192.0.2.9"], dns_search=["."], dns_options=["ndots:3"])
        assert service.resolv_conf(own, ["default"]) == "nameserver 192.0.2.9\noptions ndots:3\n"

    run_in_namespace(body)


def test_other_tables_stay_untouched() -> None:
    async def body() -> None:
        shell("nft add table inet mine && nft add chain inet mine c")
        mine = shell("nft list table inet mine")
        async with engine():
            assert shell("nft list table inet mine") == mine
        assert shell("nft list ruleset") == mine

    run_in_namespace(body)


def test_rules_need_no_protocol_names() -> None:
    async def body() -> None:
        async with engine() as service:
            ports = [publish("7000", 80, protocol) for protocol in ("tcp", "udp", "sctp")]
            endpoint = await service.join(request(1, "bridge", *ports))
            rules = shell("nft --numeric-protocol list ruleset")
            for number in (6, 17, 132):
                assert f"{number} . 7000 : 172.17.0.2 . 80" in rules
            assert set(endpoint.ports) == {"80/tcp", "80/udp", "80/sctp"}
            await service.leave(f"{1:064x}", endpoint.network_id)
            assert "7000" not in shell("nft list ruleset")

    run_in_namespace(body)


def test_kernel_without_ipv6_gets_no_ipv6_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with engine() as service:
            with_ipv6 = await service.join(request(1))
            await service.leave(f"{1:064x}", with_ipv6.network_id)
        monkeypatch.setattr(bridge, "IPV6_SETTINGS", "/proc/sys/net/no-such-family")
        async with engine() as service:
            without = await service.join(request(1))
            assert len(without.script.inside) == len(with_ipv6.script.inside) - 1
            with containers(1) as (container,):
                container.join(without)
                assert container.interfaces()["eth0"]["addr_info"][0]["local"] == "172.17.0.2"
            await service.leave(f"{1:064x}", without.network_id)

    run_in_namespace(body)


def test_another_firewall_that_drops_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        shell(
            "nft add table ip filter && nft 'add chain ip filter FORWARD "
            "{ type filter hook forward priority 0; policy drop; }'"
        )
        async with engine(bridge="mybridge"):
            pass

    run_in_namespace(body)
    (record,) = caplog.records
    assert "table ip filter drops forwarded packets" in record.getMessage()
    assert record.getMessage().endswith("accepts the interface mybridge")
    caplog.clear()


def test_udp_client_that_keeps_its_port_meets_the_next_container() -> None:
    async def body() -> None:
        async with engine() as service:
            with containers(3) as (first, second, outside):
                connect_outside(outside)
                port = publish("5353", 53, "udp")
                endpoint = await service.join(request(1, "bridge", port))
                first.join(endpoint)
                first.listen("udp", 53, "first")
                assert outside.fetch("udp", "203.0.113.1", 5353, 60, 4000) == "first 203.0.113.2"
                await service.leave(f"{1:064x}", endpoint.network_id)
                holder = await service.join(request(3))  # takes the address of the first
                next_ = await service.join(request(2, "bridge", port))
                await service.interfaces_removed()
                second.join(next_)
                second.listen("udp", 53, "second")
                assert outside.fetch("udp", "203.0.113.1", 5353, 60, 4000) == "second 203.0.113.2"
                assert holder.settings.ip_address == endpoint.settings.ip_address
            for number in (2, 3):
                await service.leave(f"{number:064x}", endpoint.network_id)

    run_in_namespace(body)


def test_engine_that_ends_while_it_sets_up_leaves_nothing() -> None:
    async def body() -> None:
        for delay_s in (0.0, 0.001, 0.003, 0.006):
            service = NetworkService(Settings(data_root=ROOT), MemoryRecords())
            setting_up = asyncio.create_task(service.ready())
            await asyncio.sleep(delay_s)
            setting_up.cancel()
            await asyncio.wait([setting_up])
            await service.close()
            assert link_names() == {"lo"}
            assert tables() == []

    run_in_namespace(body)


def test_cancelled_creation_is_whole_or_absent() -> None:
    async def body() -> None:
        async with engine() as service:
            creation = asyncio.create_task(service.create(NetworkCreateRequest(name="mine")))
            await asyncio.sleep(0.001)
            creation.cancel()
            await asyncio.wait([creation])
            await service.interfaces_removed()
            known = [n.id for n in await service.list_networks({"type": ["custom"]})]
            there = {name for name in link_names() if name.startswith("br-")}
            assert there == {f"br-{network_id[:12]}" for network_id in known}

    run_in_namespace(body)


def test_purge_command_takes_away_what_a_killed_engine_left(tmp_path: Path) -> None:
    async def body() -> None:
        killed = NetworkService(Settings(data_root=str(tmp_path)), MemoryRecords())
        await killed.ready()
        await killed.create(NetworkCreateRequest(name="mine"))
        async with engine(data_root="/another"):
            others = link_names()
            command = [sys.executable, "-m", "deskd", "purge", "--data-root", str(tmp_path)]
            await asyncio.to_thread(subprocess.run, command, check=True)
            assert len(others - link_names()) == 2, "its two bridges and nothing else"
            assert len(tables()) == 1

    run_in_namespace(body)
