"""What a container's /etc/resolv.conf says. Source: resolv.conf(5).

Containers get the machine's name servers in every network. A name server inside user-defined
networks would be added here: such networks then get its address, and the list below becomes what
that server forwards to.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

from deskd.record import Record

RESOLV_CONF = "/etc/resolv.conf"
SYSTEMD_RESOLV_CONF = "/run/systemd/resolve/resolv.conf"
"""Where systemd-resolved names the servers that it asks itself."""

PUBLIC_SERVERS = ("8.8.8.8", "8.8.4.4")
"""Docker's choice where the machine knows no server that a container could reach."""


class ResolverConfig(Record):
    """The parts of a resolv.conf."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> ResolverConfig:
        """Read a resolv.conf; what it does not know it leaves out, as the resolver does."""
        servers: list[str] = []
        search: tuple[str, ...] = ()
        options: list[str] = []
        for line in text.splitlines():
            words = line.partition("#")[0].partition(";")[0].split()
            if len(words) < 2:
                continue
            if words[0] == "nameserver":
                servers.append(words[1])
            elif words[0] in ("search", "domain"):
                search = tuple(words[1:])
            elif words[0] == "options":
                options += words[1:]
        return cls(tuple(servers), search, tuple(options))

    def text(self) -> str:
        """Write a resolv.conf."""
        lines = [f"nameserver {server}" for server in self.servers]
        if self.search:
            lines.append(f"search {' '.join(self.search)}")
        if self.options:
            lines.append(f"options {' '.join(self.options)}")
        return "".join(f"{line}\n" for line in lines)


def read_machine(
    path: str = RESOLV_CONF, systemd_path: str = SYSTEMD_RESOLV_CONF
) -> ResolverConfig:
    """Read the machine's configuration, beyond a local systemd-resolved where it is one."""
    config = _read(path)
    if config.servers and all(_is_loopback(server) for server in config.servers):
        upstream = _read(systemd_path)
        if upstream.servers:
            return upstream
    return config


def _read(path: str) -> ResolverConfig:
    try:
        return ResolverConfig.parse(Path(path).read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return ResolverConfig()


def for_container(
    machine: ResolverConfig,
    *,
    servers: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    shares_machine: bool = False,
) -> ResolverConfig:
    """Return a container's configuration: given values win over the machine's, one by one.

    A search domain ``.`` means none. ``shares_machine`` is for containers in the machine's own
    namespace, where its loopback servers can be reached.
    """
    chosen = tuple(servers) or machine.servers
    if not servers and not shares_machine:
        # Bridge networks are IPv4 only: an IPv6 server would cost every look-up a time-out.
        chosen = tuple(s for s in chosen if not _is_loopback(s) and ":" not in s)
        chosen = chosen or PUBLIC_SERVERS
    domains = tuple(search) or machine.search
    return ResolverConfig(
        chosen, () if tuple(domains) == (".",) else domains, tuple(options) or machine.options
    )


def _is_loopback(server: str) -> bool:
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False
