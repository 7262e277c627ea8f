"""The nftables rules of network faults: two tables of the engine's own, there while they are
needed.

``bridge`` sees the frames that one port of a bridge sends to another. It drops those of severed
links, and writes the class in which the sending interface's queue (``deskd.kernel.traffic``) puts
those of the others into the packet's priority. Questions for neighbours' hardware addresses pass:
else a link that is severed in one direction would soon be so in both. ``inet`` sees what goes from
container to container by a detour, by a port that is published on the machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from deskd.errors import Unsupported
from deskd.kernel.nftables import Nftables
from deskd.kernel.traffic import MAJOR
from deskd.network.fault_links import Link


class FaultRules:
    """The tables of one engine; each change is one transaction."""

    def __init__(self, table: str, nftables: Nftables) -> None:
        self._table = f"{table}_faults"
        self._nftables = nftables

    def present(self) -> bool:
        """Tell whether the tables are in the kernel."""
        listed = self._nftables.run("list tables").splitlines()
        return any(line.split()[-1:] == [self._table] for line in listed)

    def replace(
        self,
        severed: Iterable[Link],
        severed_addresses: Iterable[tuple[str, str]],
        classes: Mapping[Link, int],
    ) -> None:
        """Make the tables say exactly this; no packet meets a moment without them."""
        links = ", ".join(f'"{source}" . "{target}"' for source, target in sorted(severed))
        marks = ", ".join(
            f'"{source}" . "{target}" : {MAJOR:x}:{minor:x}'
            for (source, target), minor in sorted(classes.items())
        )
        addresses = sorted(severed_addresses)
        text = f"""{self._removal()}
table bridge {self._table} {{
  set severed {{ type ifname . ifname; {_elements(links)} }}
  map classes {{ type ifname . ifname : classid; {_elements(marks)} }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    ether type arp accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    iifname . oifname @severed drop
    meta priority set iifname . oifname map @classes
  }}
}}
table inet {self._table} {{
  set severed4 {{ type ipv4_addr . ipv4_addr; {_elements(_pairs(addresses, ipv6=False))} }}
  set severed6 {{ type ipv6_addr . ipv6_addr; {_elements(_pairs(addresses, ipv6=True))} }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    ip saddr . ip daddr @severed4 drop
    ip6 saddr . ip6 daddr @severed6 drop
  }}
}}
"""
        try:
            self._nftables.run(text)
        except Unsupported as error:
            raise Unsupported(
                "the kernel cannot filter what goes through a bridge, which network faults need: "
                "use one with CONFIG_NF_TABLES_BRIDGE (DNS faults work without)"
            ) from error

    def remove(self) -> None:
        """Remove the tables; idempotent."""
        self._nftables.run(self._removal())

    def _removal(self) -> str:
        return "\n".join(
            f"add table {family} {self._table}\ndelete table {family} {self._table}"
            for family in ("bridge", "inet")
        )


def _elements(items: str) -> str:
    return f"elements = {{ {items} }};" if items else ""


def _pairs(addresses: Iterable[tuple[str, str]], *, ipv6: bool) -> str:
    return ", ".join(f"{one} . {other}" for one, other in addresses if (":" in one) == ipv6)
