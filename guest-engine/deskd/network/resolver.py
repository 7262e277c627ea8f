"""What a container's /etc/resolv.conf says. Source: resolv.conf(5).

In the default network containers get the machine's name servers. In user-defined networks they get
the engine's own (``name_server``), which sends on to the same servers what it does not know.
"""

from __future__ import annotations

import ipaddress
import os
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
    if config.servers and all(is_loopback(server) for server in config.servers):
        upstream = _read(systemd_path)
        if upstream.servers:
            return upstream
    return config


class MachineResolver:
    """The machine's configuration, read again when its file has changed."""

    def __init__(self, path: str = RESOLV_CONF, systemd_path: str = SYSTEMD_RESOLV_CONF) -> None:
        self._paths = path, systemd_path
        self._seen: tuple[tuple[int, int, int] | None, ...] = ()
        self._config = ResolverConfig()

    def read(self) -> ResolverConfig:
        """Return the configuration as it is now."""
        seen = tuple(_identity(path) for path in self._paths)
        if seen != self._seen:
            self._config = read_machine(*self._paths)
            self._seen = seen
        return self._config


def _identity(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: str) -> ResolverConfig:
    try:
        return ResolverConfig.parse(Path(path).read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return ResolverConfig()


def servers_for(machine: ResolverConfig) -> tuple[str, ...]:
    """Return whom the engine asks for containers: it reaches the machine's loopback, too."""
    return machine.servers or PUBLIC_SERVERS


def for_container(
    machine: ResolverConfig,
    *,
    servers: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    shares_machine: bool = False,
    has_ipv6: bool = False,
    name_server: str = "",
) -> ResolverConfig:
    """Return a container's configuration: given values win over the machine's, one by one.

    With ``name_server`` that is the only server, and names without dots are asked for as they are.
    A search domain ``.`` means none. ``shares_machine`` is for containers in the machine's own
    namespace, where its loopback servers can be reached.
    """
    chosen = tuple(servers) or machine.servers
    if not servers and not shares_machine:
        # Without IPv6 in the network such a server would cost every look-up a time-out.
        chosen = tuple(s for s in chosen if not is_loopback(s) and (has_ipv6 or ":" not in s))
        chosen = chosen or PUBLIC_SERVERS
    domains = tuple(search) or machine.search
    wanted = tuple(options) or machine.options
    if name_server:
        chosen = (name_server,)
        if not any(option.startswith("ndots:") for option in wanted):
            wanted = (*wanted, "ndots:0")
    return ResolverConfig(chosen, () if tuple(domains) == (".",) else domains, wanted)


def is_loopback(server: str) -> bool:
    """Tell whether an address is one of the host's own that nobody else reaches."""
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False
