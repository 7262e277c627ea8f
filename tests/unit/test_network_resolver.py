"""What a container's resolv.conf says, for the machines that people have."""

from __future__ import annotations

from pathlib import Path

from deskd.network.resolver import (
    PUBLIC_SERVERS,
    ResolverConfig,
    Wishes,
    for_container,
    read_machine,
    text_for_container,
)


def test_plain_machine_passes_its_servers_on() -> None:
    machine = ResolverConfig.parse(
        "# made by hand\nnameserver 192.0.2.53\nsearch example.org lan\noptions ndots:2 rotate\n"
    )
    assert for_container(machine, Wishes()).text() == (
        "nameserver 192.0.2.53\nsearch example.org lan\noptions ndots:2 rotate\n"
    )


def test_loopback_and_ipv6_servers_are_left_out() -> None:
    machine = ResolverConfig.parse(
        "nameserver 127.0.0.1\nnameserver fd00::53\nnameserver ::1\nnameserver 192.0.2.53\n"
    )
    assert for_container(machine, Wishes()).servers == ("192.0.2.53",)
    assert for_container(machine, Wishes(shares_machine=True)).servers == machine.servers


def test_systemd_resolved_is_looked_through(tmp_path: Path) -> None:
    stub, upstream = tmp_path / "stub", tmp_path / "upstream"
    stub.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\n")
    upstream.write_text("nameserver 192.0.2.1\nsearch lan\n")
    assert read_machine(str(stub), str(upstream)).servers == ("192.0.2.1",)
    assert read_machine(str(stub), str(tmp_path / "missing")).servers == ("127.0.0.53",)


def test_machine_without_reachable_servers_gets_public_ones(tmp_path: Path) -> None:
    machine = read_machine(str(tmp_path / "missing"), str(tmp_path / "missing"))
    assert for_container(machine, Wishes()).servers == PUBLIC_SERVERS


def test_given_values_win_one_by_one() -> None:
    machine = ResolverConfig(("192.0.2.53",), ("lan",), ("rotate",))
    assert for_container(machine, Wishes(servers=("127.0.0.1",))) == ResolverConfig(
        ("127.0.0.1",), ("lan",), ("rotate",)
    )
    assert for_container(machine, Wishes(search=(".",))).search == ()
    assert for_container(machine, Wishes(options=("ndots:1",))).options == ("ndots:1",)


def test_comments_tell_where_the_values_come_from() -> None:
    machine = ResolverConfig.parse(
        "nameserver 127.0.0.53\nnameserver 192.0.2.53\noptions ndots:2\n", "/etc/resolv.conf"
    )
    own = Wishes(name_server="127.0.0.11")
    assert text_for_container(machine, own).partition("has been modified.\n")[2] == (
        "\nnameserver 127.0.0.11\noptions ndots:2\n\n"
        "# Based on host file: '/etc/resolv.conf' (internal resolver)\n"
        "# ExtServers: [host(127.0.0.53) 192.0.2.53]\n"
        "# Overrides: []\n"
        "# Option ndots from: host\n"
    )
    given = Wishes(name_server="127.0.0.11", servers=("192.0.2.9",), options=("rotate",))
    assert text_for_container(machine, given).endswith(
        "# ExtServers: [192.0.2.9]\n# Overrides: [nameservers options]\n"
        "# Option ndots from: internal\n"
    )


def test_comments_tell_of_public_servers() -> None:
    machine = ResolverConfig.parse("nameserver ::1\n", "/etc/resolv.conf")
    assert text_for_container(machine, Wishes()).endswith(
        "# Based on host file: '/etc/resolv.conf' (legacy)\n"
        "# Used default nameservers.\n# Overrides: []\n"
    )
    assert text_for_container(machine, Wishes(shares_machine=True)).endswith(
        "# Based on host file: '/etc/resolv.conf'\n# Overrides: []\n"
    )
