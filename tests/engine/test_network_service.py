"""Networks of a whole engine on machines and containers that are real network namespaces."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deskd.domain.container import EndpointIpamConfig, EndpointSettings, HostConfig
from deskd.domain.network import (
    OPTION_BRIDGE_NAME,
    OPTION_INHIBIT_IPV4,
    OPTION_MTU,
    ConfigReference,
    Endpoint,
    Ipam,
    IpamConfig,
    NetworkCreateRequest,
)
from deskd.errors import (
    DeskdError,
    Forbidden,
    InvalidArgument,
    NotFound,
)
from deskd.network import bridge
from deskd.network.service import NetworkService, purge
from deskd.settings import AddressPool, Settings
from tests.engine.network_machine import (
    ROOT,
    engine,
    fetch,
    publish,
    request,
    shell,
    tables,
)
from tests.network_namespaces import containers, link_names, run_in_namespace
from tests.network_records import MemoryRecords

pytestmark = pytest.mark.root


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
            await (
                killed._publishing.close()
            )  # what the end of its process does; the kernel keeps the rest
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


def test_default_subnet_avoids_the_machines_networks() -> None:
    async def body() -> None:
        shell("ip address add 172.17.5.1/24 dev lo && ip route add 172.18.0.0/16 dev lo")
        async with engine() as service:
            network = await service.inspect("bridge")
            assert (network.ipam.config or [])[0].subnet == "172.19.0.0/16"

    run_in_namespace(body)


def test_chosen_subnets_avoid_what_the_machine_routes_at_that_moment() -> None:
    """A network made later, and one that is made again: a laptop has joined a VPN meanwhile."""

    async def body() -> None:
        records = MemoryRecords()
        async with engine(records) as service:
            await service.create(NetworkCreateRequest(name="first"))
            shell("ip route add 172.19.0.0/16 dev lo && ip route add 172.20.128.0/17 dev lo")
            await service.create(NetworkCreateRequest(name="second"))
            shown = {n.name: (n.ipam.config or [])[:1] for n in await service.list_networks()}
            assert shown["first"] == [IpamConfig(subnet="172.18.0.0/16", gateway="172.18.0.1")]
            assert shown["second"] == [IpamConfig(subnet="172.21.0.0/16", gateway="172.21.0.1")]
        shell("ip route add 172.17.4.0/24 dev lo")
        async with engine(records) as service:
            default = await service.inspect("bridge")
            assert (default.ipam.config or [])[0].subnet == "172.22.0.0/16"

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


def test_configurations_hold_settings_for_networks() -> None:
    async def body() -> None:
        async with engine() as service:
            before = link_names()
            await service.create(
                NetworkCreateRequest(
                    name="cfg",
                    config_only=True,
                    ipam=subnet("10.30.0.0/24"),
                    options={OPTION_MTU: "1300"},
                )
            )
            assert link_names() == before
            with pytest.raises(Forbidden, match="on configuration-only network cfg"):
                await service.join(request(1, "cfg"))
            source = ConfigReference("cfg")
            created = await service.create(NetworkCreateRequest(name="made", config_from=source))
            made = await service.inspect("made")
            assert made.ipam.config == [IpamConfig(subnet="10.30.0.0/24", gateway="10.30.0.1")]
            assert "mtu 1300" in shell(f"ip link show br-{created.id[:12]}")
            with pytest.raises(Forbidden, match="overlaps"):
                await service.create(NetworkCreateRequest(name="again", config_from=source))
            with pytest.raises(Forbidden, match='"cfg" is in use by made'):
                await service.remove("cfg")
            with pytest.raises(InvalidArgument, match="invalid filter 'name'"):
                await service.prune({"name": ["made"]})
            assert [network.name for network in await service.prune()] == ["made"]
            await service.remove("cfg")
            assert link_names() == before

    run_in_namespace(body)


def test_a_bridge_without_an_ipv4_address() -> None:
    async def body() -> None:
        async with engine() as service:
            created = await service.create(
                NetworkCreateRequest(name="bare", options={OPTION_INHIBIT_IPV4: "true"})
            )
            assert "inet " not in shell(f"ip -4 address show br-{created.id[:12]}")
            with containers(2) as (one, two):
                endpoints = [await service.join(request(number, "bare")) for number in (1, 2)]
                one.join(endpoints[0])
                address = two.join(endpoints[1])
                two.listen("tcp", 80, "two")
                assert one.fetch("tcp", address, 80).startswith("two ")
                for number, endpoint in enumerate(endpoints, 1):
                    await service.leave(f"{number:064x}", endpoint.network_id)

    run_in_namespace(body)


def subnet(text: str) -> Ipam:
    return Ipam(config=[IpamConfig(subnet=text)])


@pytest.mark.parametrize(
    ("wish", "error", "text"),
    [
        (NetworkCreateRequest(name="x", ipam=subnet("172.17.9.0/24")), Forbidden, "network bridge"),
        (NetworkCreateRequest(name="x", ipam=subnet("127.9.0.0/16")), InvalidArgument, "reserved"),
        (NetworkCreateRequest(name="x", ipam=subnet("198.51.100.0/25")), Forbidden, "interface lo"),
        (
            NetworkCreateRequest(name="x", ipam=subnet("10.1.2.3/24")),
            InvalidArgument,
            "should be 10.1.2.0/24",
        ),
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
        for network in ("bridge", "host"):
            text = service.resolv_conf(plain, [network])
            assert "\nnameserver 192.0.2.1\nsearch lan\n" in text
        own = HostConfig(dns=["192.0.2.9"], dns_search=["."], dns_options=["ndots:3"])
        text = service.resolv_conf(own, ["default"])
        assert "\nnameserver 192.0.2.9\noptions ndots:3\n\n#" in text

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
