"""What a container's resolv.conf says, for the machines that people have."""

from __future__ import annotations

from pathlib import Path

from deskd.network.resolver import PUBLIC_SERVERS, ResolverConfig, for_container, read_machine


def test_plain_machine_passes_its_servers_on() -> None:
    machine = ResolverConfig.parse(
        "# made by hand\nnameserver 192.0.2.53\nsearch example.org lan\noptions ndots:2 rotate\n"
    )
    assert for_container(machine).text() == (
        "nameserver 192.0.2.53\nsearch example.org lan\noptions ndots:2 rotate\n"
    )


def test_loopback_and_ipv6_servers_are_left_out() -> None:
    machine = ResolverConfig.parse(
        "nameserver 127.0.0.1\nnameserver fd00::53\nnameserver ::1\nnameserver 192.0.2.53\n"
    )
    assert for_container(machine).servers == ("192.0.2.53",)
    assert for_container(machine, shares_machine=True).servers == machine.servers


def test_systemd_resolved_is_looked_through(tmp_path: Path) -> None:
    stub, upstream = tmp_path / "stub", tmp_path / "upstream"
    stub.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\n")
    upstream.write_text("nameserver 192.0.2.1\nsearch lan\n")
    assert read_machine(str(stub), str(upstream)).servers == ("192.0.2.1",)
    assert read_machine(str(stub), str(tmp_path / "missing")).servers == ("127.0.0.53",)


def test_machine_without_reachable_servers_gets_public_ones(tmp_path: Path) -> None:
    machine = read_machine(str(tmp_path / "missing"), str(tmp_path / "missing"))
    assert for_container(machine).servers == PUBLIC_SERVERS


def test_given_values_win_one_by_one() -> None:
    machine = ResolverConfig(("192.0.2.53",), ("lan",), ("rotate",))
    assert for_container(machine, servers=["127.0.0.1"]) == ResolverConfig(
        ("127.0.0.1",), ("lan",), ("rotate",)
    )
    assert for_container(machine, search=["."]).search == ()
    assert for_container(machine, options=["ndots:1"]).options == ("ndots:1",)
