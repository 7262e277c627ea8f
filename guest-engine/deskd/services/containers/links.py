"""Links between containers (``--link``): another container's address by an alias of one's own.

On the default network, which has no name server, a link is a line in /etc/hosts and variables in
the environment, as Docker made them before networks had names. In other networks
(``EndpointSettings.Links``) it is a name, which the networks' name server knows. A link points
at a container's ID and so outlives a change of its name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from deskd.domain.container import HostConfig
from deskd.domain.network import LinkedPort
from deskd.domain.state import ContainerRecord
from deskd.errors import Conflict, InvalidArgument, NotFound
from deskd.services.containers.merging import parse_port
from deskd.services.containers.registry import Container, ContainerRegistry

DEFAULT_NETWORK = "bridge"
_NOT_TOLD = ("HOME", "PATH")


class Links:
    """Finds what containers are linked to, and says it in hosts lines and variables."""

    def __init__(self, registry: ContainerRegistry) -> None:
        self._registry = registry

    def settle(self, host_config: HostConfig) -> dict[str, str]:
        """Return container IDs by alias. Raises ``InvalidArgument``."""
        if not host_config.links or _is_user_defined(host_config.network_mode):
            return {}  # the client has put them into the endpoint's settings
        settled: dict[str, str] = {}
        for text in host_config.links:
            name, alias = parse_link(text)
            found = self._registry.find(name)
            if found is None:
                raise InvalidArgument(
                    f"could not get container for {name}: No such container: {name}"
                )
            if found.record.host_config.network_mode == "host":
                raise InvalidArgument(
                    "conflicting options: host type networking can't be used with links. This "
                    "would result in undefined behavior"
                )
            settled[alias] = found.id
        return settled

    def shown(self, record: ContainerRecord) -> list[str] | None:
        """Return ``HostConfig.Links`` as ``inspect`` shows it."""
        return [
            f"/{child.name}:/{record.name}/{alias}" for alias, child in self._children(record)
        ] or None

    def names(self) -> dict[str, list[str]]:
        """Return by containers' IDs the names by which others are linked to them:
        ``/OTHER/ALIAS``."""
        found: dict[str, list[str]] = {}
        for parent in self._registry:
            for alias, child_id in parent.record.links.items():
                found.setdefault(child_id, []).append(f"/{parent.name}/{alias}")
        return found

    def hosts_lines(self, record: ContainerRecord) -> list[str]:
        """Return the lines of /etc/hosts for a container that starts. Raises ``Conflict`` where
        it is linked to one that does not run in the default network."""
        lines = []
        for alias, child in self._children(record):
            if not child.record.state.running:
                raise Conflict(
                    f"Cannot link to a non running container: /{child.name} AS "
                    f"/{record.name}/{alias}; start it first"
                )
            lines.append(f"{_address(child)}\t{_names(alias, child)}")
        return lines

    def environment(self, record: ContainerRecord) -> tuple[str, ...]:
        """Return the variables that tell a container of those that it is linked to."""
        found: list[str] = []
        for alias, child in self._children(record):
            if child.record.state.running:
                found += _variables(f"/{record.name}/{alias}", _address(child), child.record)
        return tuple(found)

    def followers(self, container: Container) -> list[Container]:
        """Return the running containers whose hosts files name this one."""
        return [
            parent
            for parent in self._registry
            if parent.record.state.running and container.id in parent.record.links.values()
        ]

    def open_ports(self) -> list[LinkedPort]:
        """Return what every container of the default network may reach of those that it is linked
        to: their exposed ports."""
        found = []
        for parent in self._registry:
            source = parent.record.endpoints.get(DEFAULT_NETWORK)
            if source is None or not parent.record.links:
                continue
            for _, child in self._children(parent.record):
                target = child.record.endpoints.get(DEFAULT_NETWORK)
                if target is not None:
                    addresses = source.settings.ip_address, target.settings.ip_address
                    found += [
                        LinkedPort(*addresses, *parse_port(text))
                        for text in child.record.config.exposed_ports or ()
                    ]
        return found

    def unlink(self, parent: str, alias: str) -> None:
        """Forget a link. Raises ``NotFound``."""
        found = self._registry.get(parent)
        if alias not in found.record.links:
            raise NotFound(f"No such link: /{found.name}/{alias}")
        del found.record.links[alias]
        self._registry.save(found)

    def _children(self, record: ContainerRecord) -> Iterator[tuple[str, Container]]:
        for alias, child_id in sorted(record.links.items()):
            child = self._registry.find(child_id)
            if child is not None:  # it may have been removed since
                yield alias, child


def parse_link(text: str) -> tuple[str, str]:
    """Read ``NAME``, ``NAME:ALIAS`` or what ``inspect`` shows: ``/NAME:/OWN/ALIAS``."""
    if not text:
        raise InvalidArgument("empty string specified for links")
    parts = text.split(":")
    if len(parts) > 2 or not all(parts):
        raise InvalidArgument(f"bad format for links: {text}")
    name = parts[0].removeprefix("/")
    alias = parts[-1].rpartition("/")[2]
    if not name or not alias or not alias.isprintable() or " " in alias:
        raise InvalidArgument(f"bad format for links: {text}")
    return name, alias


def _is_user_defined(mode: str) -> bool:
    return mode not in ("", "default", DEFAULT_NETWORK, "host", "none") and ":" not in mode


def _address(child: Container) -> str:
    endpoint = child.record.endpoints.get(DEFAULT_NETWORK)
    if endpoint is None:
        raise Conflict(
            f"Cannot link to /{child.name}, as it does not belong to the default network"
        )
    return endpoint.settings.ip_address


def _names(alias: str, child: Container) -> str:
    return " ".join(dict.fromkeys((alias, child.record.config.hostname, child.name)))


def _variables(name: str, address: str, child: ContainerRecord) -> list[str]:
    prefix = name.rpartition("/")[2].upper().replace("-", "_")
    ports = sorted(parse_port(text) for text in child.config.exposed_ports or ())
    found = []
    if ports:
        number, protocol = ports[0]
        found.append(f"{prefix}_PORT={protocol}://{address}:{number}")
    for start, end, protocol in _ranges(ports):
        port = f"{prefix}_PORT_{start}_{protocol.upper()}"
        found += [
            f"{port}_START={protocol}://{address}:{start}",
            f"{port}_PORT_START={start}",
            f"{port}_END={protocol}://{address}:{end}",
            f"{port}_PORT_END={end}",
        ]
    for number, protocol in ports:
        port = f"{prefix}_PORT_{number}_{protocol.upper()}"
        found += [
            f"{port}={protocol}://{address}:{number}",
            f"{port}_ADDR={address}",
            f"{port}_PORT={number}",
            f"{port}_PROTO={protocol}",
        ]
    found.append(f"{prefix}_NAME={name}")
    for item in child.config.env or ():
        key, separator, value = item.partition("=")
        if separator and key not in _NOT_TOLD:
            found.append(f"{prefix}_ENV_{key}={value}")
    return found


def _ranges(ports: Sequence[tuple[int, str]]) -> Iterator[tuple[int, int, str]]:
    """Yield first, last and protocol of three or more ports in a row: what Docker takes for a
    range."""
    for wanted in dict.fromkeys(protocol for _, protocol in ports):
        numbers = [number for number, protocol in ports if protocol == wanted]
        # Numbers in a row differ from their places by the same.
        for _, row in itertools.groupby(enumerate(numbers), lambda item: item[1] - item[0]):
            members = [number for _, number in row]
            if len(members) > 2:
                yield members[0], members[-1], wanted


def with_lines(hosts: str, lines: Sequence[str]) -> str:
    """Return a hosts file in which each of ``lines`` has taken the place of the one that named
    its first name before; all others stay as the container's programs left them."""
    wanted: Mapping[str, str] = {line.split()[1]: line for line in lines}
    kept = [
        line
        for line in hosts.splitlines()
        if len(line.split()) < 2 or line.split()[1] not in wanted
    ]
    return "".join(f"{line}\n" for line in [*kept, *lines])
