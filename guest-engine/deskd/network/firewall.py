"""The engine's one nftables table: NAT, published ports and isolation of its bridges.

The rules never change while the engine runs: they look things up in sets and maps, and each
operation is one transaction on elements. Nothing outside the table is touched, so another
firewall's decision to drop (``policy drop`` in a forward chain of Docker, ufw or firewalld)
still holds for container traffic.

Rules, with their reasons:

- ``raw``: a bridge has ``route_localnet`` (a published port answers on 127.0.0.1), which would
  let a container reach services that listen on the machine's loopback only. Dropped before
  address translation, so replies to translated connections pass.
- ``prerouting``, ``output``, where the agent is the way to the laptop: its address leads to the
  engine's relay (see ``laptop``), but not from internal networks. What is not TCP goes nowhere.
- ``prerouting``, ``output``: connections to any address of the machine itself go to the container
  that published the port; first bindings to one address, then those to all. ::1 is left out: the
  kernel takes no answer to it from another interface, and has no ``route_localnet`` for IPv6.
- ``postrouting``: connections from 127.0.0.0/8 get the bridge's address (the container could not
  answer otherwise); so do connections that come back to their own bridge, whose reply would
  else bypass the translation (the test is by source address, because packets that br_netfilter
  shows have no incoming interface here); and everything that leaves for another interface.
- ``forward``: inside a bridge and for replies and published ports all is open; anything else to a
  bridge, from another bridge or from outside, is dropped; an internal network gets out nowhere.
  What belongs to a connection that was let through comes first, because with br_netfilter every
  packet inside a bridge comes here too (``raw`` asks for the rare address first for the same
  reason): looking names up in sets took a tenth of the throughput between two containers.
  Without communication between containers, what a linked container exposes is open to the one
  that is linked to it.
- ``output``: the machine routes between linked containers of one bridge, and would tell the sender
  (ICMP redirect) that there is a shorter way, which there is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

import msgspec

from deskd.kernel.nftables import Nftables
from deskd.network.ipam import Address

ANY = IPv4Address(0)
ANY_IPV6 = IPv6Address(0)
LOOPBACK_IPV6 = IPv6Address(1)
PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
"""nft takes names from /etc/protocols, which a small system need not have."""


class BridgeRules(msgspec.Struct, frozen=True):
    """How the firewall treats one bridge."""

    name: str
    masquerade: bool = True
    internal: bool = False
    inter_container: bool = True
    subnets: tuple[str, ...] = ()


class Opening(msgspec.Struct, frozen=True):
    """One port of a linked container, open to the one that is linked to it."""

    bridge: str
    source: IPv4Address
    target: IPv4Address
    protocol: str
    port: int

    def element(self) -> str:
        """Return the set's element in nft's language."""
        port = f"{PROTOCOL_NUMBERS[self.protocol]} . {self.port}"
        return f'"{self.bridge}" . {self.source} . {self.target} . {port}'


class Publication(msgspec.Struct, frozen=True):
    """One published port: ``host_address`` 0.0.0.0 or :: means every address of the machine in
    that family."""

    protocol: str
    host_address: Address
    host_port: int
    container_address: Address
    container_port: int

    @property
    def is_everywhere(self) -> bool:
        """Tell whether it is published on every address."""
        return self.host_address in (ANY, ANY_IPV6)

    @property
    def is_translated(self) -> bool:
        """Tell whether the firewall leads connections to the container.

        It cannot from one family to the other, nor from ::1 (see ``relays``).
        """
        return (
            self.host_address.version == self.container_address.version
            and self.host_address != LOOPBACK_IPV6
        )

    @property
    def is_relayed(self) -> bool:
        """Tell whether the machine's own socket can be reached, and passes on what comes."""
        return self.protocol in ("tcp", "udp") and (
            not self.is_translated or self.host_address == ANY_IPV6
        )

    def key(self) -> str:
        """Return the map's key in nft's language."""
        port = f"{PROTOCOL_NUMBERS[self.protocol]} . {self.host_port}"
        return port if self.is_everywhere else f"{self.host_address} . {port}"

    def element(self) -> str:
        """Return the map's element in nft's language."""
        return f"{self.key()} : {self.container_address} . {self.container_port}"

    @property
    def map_name(self) -> str:
        """The map that holds this publication."""
        family = "6" if self.host_address.version == 6 else ""
        return f"published{family}" if self.is_everywhere else f"published{family}_on"


class LaptopRules(msgspec.Struct, frozen=True):
    """Where connections to the laptop's address go: to a port of the machine's 127.0.0.1."""

    address: IPv4Address
    relay_port: int

    def translation(self, bridges: str = "") -> str:
        """Return the rule that leads them there."""
        return (
            f"{bridges}ip daddr {self.address} meta l4proto {PROTOCOL_NUMBERS['tcp']} "
            f"dnat ip to 127.0.0.1:{self.relay_port}"
        )


def table_text(table: str, laptop: LaptopRules | None = None) -> str:
    """Return the table without elements, in nft's language."""
    from_bridges = to_laptop = no_other_way = ""
    if laptop is not None:
        from_bridges = laptop.translation("iifname @bridges iifname != @internal ")
        to_laptop = laptop.translation()
        no_other_way = f"ip daddr {laptop.address} drop"
    port = "meta l4proto . th dport"
    translate = f"""fib daddr type local dnat ip to ip daddr . {port} map @published_on
    fib daddr type local dnat ip to {port} map @published
    ip6 daddr ::1 accept
    fib daddr type local dnat ip6 to ip6 daddr . {port} map @published6_on
    fib daddr type local dnat ip6 to {port} map @published6"""
    return f"""table inet {table} {{
  set bridges {{ type ifname; }}
  set open {{ type ifname . ifname; }}
  set local {{ type ifname . ipv4_addr; flags interval; }}
  set local6 {{ type ifname . ipv6_addr; flags interval; }}
  set masqueraded {{ type ifname; }}
  set internal {{ type ifname; }}
  set linked {{ type ifname . ipv4_addr . ipv4_addr . inet_proto . inet_service; }}
  map published {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map published_on {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map published6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  map published6_on {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
  chain raw {{
    type filter hook prerouting priority -300; policy accept;
    ip daddr 127.0.0.0/8 iifname @bridges drop
  }}
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    {from_bridges}
    {translate}
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    {to_laptop}
    {translate}
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    oifname @bridges ip saddr 127.0.0.0/8 masquerade
    oifname . ip saddr @local ct status dnat masquerade
    oifname . ip6 saddr @local6 ct status dnat masquerade
    iifname @masqueraded oifname != @bridges masquerade
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    ct state established,related accept
    {no_other_way}
    iifname . oifname @open accept
    oifname @bridges ct status dnat accept
    iifname . ip saddr . ip daddr . {port} @linked accept
    oifname @bridges drop
    iifname @internal drop
  }}
  chain redirects {{
    type filter hook output priority 0; policy accept;
    oifname @bridges icmp type redirect drop
  }}
}}
"""


class Firewall:
    """The table of one engine. Calls are short (0.15 ms) and safe on the event loop."""

    def __init__(self, table: str, nftables: Nftables, laptop: LaptopRules | None = None) -> None:
        self.table = table
        self._nftables = nftables
        self._laptop = laptop

    def replace(
        self,
        bridges: Iterable[BridgeRules],
        publications: Iterable[Publication],
        openings: Iterable[Opening] = (),
    ) -> None:
        """Build the whole table anew in one transaction: stale elements of an earlier engine go,
        and no connection meets a moment without rules."""
        commands = [f"add table inet {self.table}", f"delete table inet {self.table}"]
        commands.append(table_text(self.table, self._laptop))
        for bridge in bridges:
            commands += self._bridge_elements("add", bridge)
        commands += self._publication_elements("add", publications)
        commands += self._opening_elements("add", openings)
        self._nftables.run("\n".join(commands))

    def add_bridge(self, bridge: BridgeRules) -> None:
        """Treat one more bridge."""
        self._nftables.run("\n".join(self._bridge_elements("add", bridge)))

    def remove_bridge(self, bridge: BridgeRules) -> None:
        """Treat a bridge no more."""
        self._nftables.run("\n".join(self._bridge_elements("delete", bridge)))

    def publish(self, publications: Iterable[Publication]) -> None:
        """Send these ports to their container, all or none."""
        commands = self._publication_elements("add", publications)
        if commands:
            self._nftables.run("\n".join(commands))

    def withdraw(self, publications: Iterable[Publication]) -> None:
        """Publish these ports no more, all or none."""
        commands = self._publication_elements("delete", publications)
        if commands:
            self._nftables.run("\n".join(commands))

    def open(self, openings: Iterable[Opening]) -> None:
        """Let these connections through, all or none; those that are open stay so."""
        commands = self._opening_elements("add", openings)
        if commands:
            self._nftables.run("\n".join(commands))

    def shut(self, openings: Iterable[Opening]) -> None:
        """Let these connections through no more, all or none."""
        commands = self._opening_elements("delete", openings)
        if commands:
            self._nftables.run("\n".join(commands))

    def foreign_drops(self) -> list[str]:
        """Return the tables of others that drop forwarded packets unless a rule accepts them."""
        found = []
        table = ""
        for line in self._nftables.run("list chains").splitlines():
            words = line.split()
            if words[:1] == ["table"]:
                table = " ".join(words[1:3])
            elif "hook forward" in line and "policy drop" in line:
                found.append(table)
        return [name for name in found if name.startswith(("ip ", "inet "))]

    def remove(self) -> None:
        """Remove the table; idempotent."""
        self._nftables.run(f"add table inet {self.table}\ndelete table inet {self.table}")

    def _bridge_elements(self, verb: str, bridge: BridgeRules) -> list[str]:
        quoted = f'"{bridge.name}"'
        sets = [("bridges", quoted)]
        sets += [
            ("local6" if ":" in subnet else "local", f"{quoted} . {subnet}")
            for subnet in bridge.subnets
        ]
        if bridge.inter_container:
            sets.append(("open", f"{quoted} . {quoted}"))
        if bridge.masquerade and not bridge.internal:
            sets.append(("masqueraded", quoted))
        if bridge.internal:
            sets.append(("internal", quoted))
        return [f"{verb} element inet {self.table} {name} {{ {item} }}" for name, item in sets]

    def _opening_elements(self, verb: str, openings: Iterable[Opening]) -> list[str]:
        items = ", ".join(opening.element() for opening in openings)
        return [f"{verb} element inet {self.table} linked {{ {items} }}"] if items else []

    def _publication_elements(self, verb: str, publications: Iterable[Publication]) -> list[str]:
        by_map: dict[str, list[str]] = {}
        for publication in publications:
            if not publication.is_translated:
                continue
            item = publication.element() if verb == "add" else publication.key()
            by_map.setdefault(publication.map_name, []).append(item)
        return [
            f"{verb} element inet {self.table} {name} {{ {', '.join(items)} }}"
            for name, items in by_map.items()
        ]
