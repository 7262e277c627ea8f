"""rtnetlink requests: cheap to load, exact as templates, and understood by the kernel."""

from __future__ import annotations

import errno
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network

import pytest

from deskd.errors import Unsupported
from deskd.kernel import netlink
from tests.network_namespaces import Container, in_namespace, link_names

IN_CHILD = """
import sys
from deskd.kernel import netlink
assert not [name for name in sys.modules if name.startswith("pyroute2")]
netlink.load_messages()
loaded = [name for name in sys.modules if name.startswith("pyroute2")]
assert "pyroute2" not in loaded, loaded
assert len(loaded) < 40, loaded
import pyroute2
assert pyroute2.IPRoute
netlink.set_up(1)
"""


def test_only_message_classes_are_loaded_and_the_package_stays_usable() -> None:
    subprocess.run([sys.executable, "-c", IN_CHILD], check=True)


def test_veth_template_equals_a_fresh_request() -> None:
    template = netlink.veth_template(bridge_index=7, peer="eth0", peer_index=100, mtu=1400)
    patched = template.render(
        name=b"veth0123456",
        index=netlink.uint32(1 << 28),
        peer_mac=bytes.fromhex("0242ac110002"),
        pid=netlink.uint32(4711),
    )
    assert patched == netlink.create_veth(
        "veth0123456",
        index=1 << 28,
        bridge_index=7,
        peer="eth0",
        peer_index=100,
        peer_mac="02:42:ac:11:00:02",
        peer_namespace_pid=4711,
        mtu=1400,
    )


@pytest.mark.parametrize(
    "subnet", ["172.17.0.0/16", "10.0.0.0/8", "192.168.5.128/25", "10.9.8.4/30"]
)
def test_address_template_equals_a_fresh_request(subnet: str) -> None:
    network = IPv4Network(subnet)
    address = network.network_address + 2
    patched = netlink.address_template(100, network).render(address=address.packed)
    assert patched == netlink.add_address(100, address, network.prefixlen)


def test_template_refuses_a_field_of_another_length() -> None:
    template = netlink.bridge_port_template(hairpin=True, isolated=True)
    with pytest.raises(ValueError, match="takes 4 bytes"):
        template.render(index=b"12345")


@pytest.mark.root
def test_refusals_carry_the_kernels_explanation() -> None:
    def body() -> None:
        with netlink.RouteSocket() as route:
            with pytest.raises(OSError, match=r"Nexthop has invalid gateway") as caught:
                route.request(netlink.add_default_route(1, IPv4Address("10.0.0.1")))
            assert caught.value.errno == errno.ENETUNREACH

    in_namespace(body)


@pytest.mark.root
def test_missing_kind_of_link_is_named_and_nothing_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    option = ("CONFIG_NOSUCHKIND", "nosuchkind", "such networks", "others work without")
    monkeypatch.setitem(netlink.KIND_OPTIONS, "nosuchkind", option)

    def body() -> None:
        with netlink.RouteSocket() as route:
            before = link_names()
            netlink.check_kinds(route, "bridge", "veth")
            with pytest.raises(Unsupported, match=r"no nosuchkind links.*CONFIG_NOSUCHKIND"):
                netlink.check_kinds(route, "nosuchkind")
            assert link_names() == before

    in_namespace(body)


@pytest.mark.root
def test_links_addresses_and_routes_are_read_back() -> None:
    def body() -> None:
        with netlink.RouteSocket() as route:
            route.request(netlink.create_bridge("br-test", "02:42:00:00:00:01", 1400))
            (link,) = [item for item in route.links() if item.name == "br-test"]
            assert (link.kind, link.mac, link.up) == ("bridge", "02:42:00:00:00:01", True)
            route.request(netlink.set_alias(link.index, "desk test"))
            route.request(netlink.add_address(link.index, IPv4Address("10.1.0.1"), 24))
            (link,) = [item for item in route.links() if item.name == "br-test"]
            assert link.alias == "desk test"
            assert (link.index, IPv4Address("10.1.0.1"), 24) in route.addresses()
            assert (link.index, IPv4Network("10.1.0.0/24")) in route.routes()
            route.request(netlink.delete_address(link.index, IPv4Address("10.1.0.1"), 24))
            assert (link.index, IPv4Network("10.1.0.0/24")) not in route.routes()
            route.request(netlink.delete_link("br-test"))
            with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is checked)
                route.request(netlink.delete_link("br-test"))
            assert caught.value.errno == errno.ENODEV

    in_namespace(body)


@pytest.mark.root
def test_requests_of_one_call_are_all_answered_and_the_first_error_is_told() -> None:
    def body() -> None:
        index = 1 << 27
        make = netlink.create_bridge("br-test", "02:42:00:00:00:01", index=index)
        with netlink.RouteSocket() as route:
            route.request(make, netlink.set_alias(index, "desk one"))
            (link,) = [item for item in route.links() if item.name == "br-test"]
            assert (link.index, link.alias) == (index, "desk one")
            other = netlink.create_bridge("br-test", "02:42:00:00:00:02", index=index + 1)
            with pytest.raises(FileExistsError):
                route.request(other, netlink.set_alias(index + 1, "desk two"))
            assert [item.alias for item in route.links() if item.name == "br-test"] == ["desk one"]
            route.request(netlink.delete_link("br-test"))  # its own answer, not an older one
            assert "br-test" not in link_names()

    in_namespace(body)


@pytest.mark.root
def test_veth_pair_is_one_request_with_known_indices() -> None:
    def body() -> None:
        container = Container()
        try:
            with netlink.RouteSocket() as route:
                route.request(netlink.create_bridge("br-test", "02:42:00:00:00:01"))
                (bridge,) = [item for item in route.links() if item.name == "br-test"]
                route.request(
                    netlink.create_veth(
                        "veth0123456",
                        index=1 << 28,
                        bridge_index=bridge.index,
                        peer="eth0",
                        peer_index=100,
                        peer_mac="02:42:0a:01:00:02",
                        peer_namespace_pid=container.pid,
                    )
                )
                (host_end,) = [item for item in route.links() if item.name == "veth0123456"]
            assert (host_end.index, host_end.master, host_end.up) == (1 << 28, bridge.index, True)
            peer = container.interfaces()["eth0"]
            assert (peer["ifindex"], peer["address"]) == (100, "02:42:0a:01:00:02")
        finally:
            container.stop()

    in_namespace(body)
