"""What travels between containers, the machine and others, and what does not."""

from __future__ import annotations

import asyncio
import socket

import pytest

from deskd.domain.container import PortBinding
from deskd.domain.network import (
    OPTION_INTER_CONTAINER,
    LinkedPort,
    NetworkCreateRequest,
)
from deskd.errors import (
    ResourceExhausted,
    SystemFailure,
)
from deskd.network import bridge
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
from tests.network_namespaces import containers, link_names, run_in_namespace
from tests.network_records import MemoryRecords

pytestmark = pytest.mark.root


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
                    PortBinding(host_ip="::", host_port="8080"),
                    PortBinding(host_ip="127.0.0.1", host_port="8081"),
                )
                address = web.join(endpoint)
                neighbour.join(await service.join(request(2)))
                stranger.join(await service.join(request(3, "other")))
                web.listen("tcp", 80, "web")
                web.listen("udp", 53, "dns")
                assert fetch("127.0.0.1", 8080) == "web 172.17.0.1"
                assert fetch("127.0.0.1", 8081) == "web 172.17.0.1"
                # The engine passes this one on, in the loop that this test runs in.
                assert await asyncio.to_thread(fetch, "::1", 8080) == "web 172.17.0.1"
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


@pytest.mark.parametrize("br_netfilter", [False, True])
def test_only_linked_ports_are_open_without_icc(br_netfilter: bool) -> None:
    async def body() -> None:
        set_br_netfilter(enabled=br_netfilter)
        async with engine(icc=False) as service:
            with containers(3) as (client, server, stranger):
                own = client.join(await service.join(request(1)))
                address = server.join(await service.join(request(2)))
                stranger.join(await service.join(request(3)))
                for port in (80, 81):
                    server.listen("tcp", port, "server")
                server.listen("udp", 53, "names")
                client.listen("tcp", 80, "client")
                linked = [LinkedPort(own, address, 80, "tcp"), LinkedPort(own, address, 53, "udp")]
                service.open_linked(linked)
                # The address that the server sees is the client's own.
                assert client.fetch("tcp", address, 80) == f"server {own}"
                assert client.fetch("udp", address, 53) == f"names {own}"
                for who, there, port in (
                    (client, address, 81),
                    (server, own, 80),
                    (stranger, address, 80),
                ):
                    assert who.fetch("tcp", there, port, 0.4) == "error: TimeoutError"
                # A new set of rules (an engine restart makes one) opens the same.
                await service.restore([])
                assert client.fetch("tcp", address, 80) == f"server {own}"
                service.open_linked(linked[1:])
                assert client.fetch("tcp", address, 80, 0.4) == "error: TimeoutError"
                assert client.fetch("udp", address, 53) == f"names {own}"
            for number in (1, 2, 3):
                await service.leave(f"{number:064x}", (await service.inspect("bridge")).id)

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
