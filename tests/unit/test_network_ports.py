"""Host ports: forms of a binding, real conflicts on the machine, nothing held after a failure."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from tests.free_ports import free_port

from deskd.domain.container import PortBinding
from deskd.domain.network import PortRequest
from deskd.errors import InvalidArgument, ResourceExhausted
from deskd.network.ports import RANDOM_PORTS, HostPorts, Target, parse_host_ports

TARGET = Target(IPv4Address("172.17.0.2"))


@pytest.fixture
def ports() -> Iterator[HostPorts]:
    held = HostPorts()
    yield held
    held.close()


def want(*host_ports: str, protocol: str = "tcp", host_ip: str = "127.0.0.1") -> PortRequest:
    bindings = tuple(PortBinding(host_ip=host_ip, host_port=port) for port in host_ports)
    return PortRequest(80, protocol, bindings)


@pytest.mark.parametrize("text", ["-1", "0-5", "70000", "9-8", "80-", "eighty", "٣", "80 "])
def test_nonsense_ports(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_host_ports(text)


def test_forms_of_ports() -> None:
    assert parse_host_ports("") is None
    assert parse_host_ports("0") is None
    assert parse_host_ports("8080") == range(8080, 8081)
    assert parse_host_ports("8000-8010") == range(8000, 8011)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_held_port_is_taken_for_everybody(ports: HostPorts, protocol: str) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    port = free_port(kind)
    (publication,) = ports.hold_all([want(str(port), protocol=protocol)], TARGET)
    assert (publication.host_port, publication.container_address) == (port, TARGET.ipv4)
    for reuse in (0, 1):
        with socket.socket(socket.AF_INET, kind) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            with pytest.raises(OSError, match="in use"):  # noqa: PT012 (bind or listen refuses)
                other.bind(("127.0.0.1", port))
                other.listen()
    second_engine = HostPorts()
    with pytest.raises(ResourceExhausted):
        second_engine.hold_all([want(str(port), protocol=protocol)], TARGET)
    ports.release([publication])
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", port))


def test_stray_connection_is_refused_and_not_left_hanging(ports: HostPorts) -> None:
    (publication,) = ports.hold_all([want(str(free_port()))], TARGET)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", publication.host_port), timeout=60)


def test_busy_port_has_dockers_words_and_nothing_stays_held(ports: HostPorts) -> None:
    first = free_port()
    with socket.create_server(("127.0.0.1", 0)) as server:
        busy = server.getsockname()[1]
        with pytest.raises(ResourceExhausted) as caught:
            ports.hold_all([want(str(first)), want(str(busy))], TARGET)
    assert str(caught.value) == f"Bind for 127.0.0.1:{busy} failed: port is already allocated"
    with socket.create_server(("127.0.0.1", first)):
        pass


def test_port_in_time_wait_can_be_published(ports: HostPorts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        client = socket.create_connection(address)
        accepted, _ = server.accept()
        accepted.close()
        client.close()
    assert ports.hold_all([want(str(address[1]))], TARGET)[0].host_port == address[1]


def test_range_takes_the_first_free_port(ports: HostPorts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        busy = server.getsockname()[1]
        if busy > 65000:
            pytest.fail("the kernel's ephemeral ports are expected below 65000")
        (publication,) = ports.hold_all([want(f"{busy}-{busy + 50}")], TARGET)
    assert busy < publication.host_port <= busy + 50


def test_random_ports_differ_and_lie_in_the_range(ports: HostPorts) -> None:
    publications = ports.hold_all([want("", "")], TARGET)
    assert len({p.host_port for p in publications}) == 2
    assert all(p.host_port in RANDOM_PORTS for p in publications)


def test_address_of_another_machine_is_named(ports: HostPorts) -> None:
    with pytest.raises(ResourceExhausted, match=r"203\.0\.113\.7:8080/tcp: cannot assign"):
        ports.hold_all([want("8080", host_ip="203.0.113.7")], TARGET)


@pytest.mark.parametrize("host_ip", ["localhost", "1.2.3", "::zz"])
def test_nonsense_addresses(ports: HostPorts, host_ip: str) -> None:
    with pytest.raises(InvalidArgument):
        ports.hold_all([want("8080", host_ip=host_ip)], TARGET)


def test_default_address_of_a_network_serves_bindings_without_one(ports: HostPorts) -> None:
    target = Target(IPv4Address("172.17.0.2"), default=IPv4Address("127.0.0.1"))
    (publication,) = ports.hold_all([want("", host_ip="")], target)
    assert str(publication.host_address) == "127.0.0.1"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_ports_are_published_in_ipv6_too_where_the_container_has_none(
    ports: HostPorts, protocol: str
) -> None:
    both = ports.hold_all([want("", protocol=protocol, host_ip="")], TARGET)
    assert [str(item.host_address) for item in both] == ["0.0.0.0", "::"]
    assert {item.container_address for item in both} == {TARGET.ipv4}
    assert [item.is_relayed for item in both] == [False, True]
    assert len({item.host_port for item in both}) == 1


def test_a_machine_without_ipv6_publishes_in_ipv4(
    ports: HostPorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithoutIpv6(socket.socket):
        def __init__(self, family: int = -1, *arguments: int, **more: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *arguments, **more)

    monkeypatch.setattr(socket, "socket", WithoutIpv6)
    (publication,) = ports.hold_all([want("", host_ip="")], TARGET)
    assert str(publication.host_address) == "0.0.0.0"
