"""A container's places in networks: joining at a start, leaving at the end, its name files and
its name server."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import msgspec

from deskd.domain.container import PortBinding
from deskd.domain.network import (
    LAPTOP_NAMES,
    Endpoint,
    EndpointRequest,
    NetlinkScript,
    PortRequest,
)
from deskd.domain.state import ContainerRecord, StoredEndpoint
from deskd.errors import Conflict, DeskdError
from deskd.layout import DataRoot
from deskd.services.containers.inner_sockets import InnerSockets
from deskd.services.containers.links import Links, with_lines
from deskd.services.containers.merging import parse_port
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.containers.remapping import Remapping
from deskd.services.ports import ContainerNetworks, Runtime

log = logging.getLogger(__name__)


class Endpoints:
    """Joins and leaves networks for containers."""

    def __init__(
        self,
        networks: ContainerNetworks,
        layout: DataRoot,
        links: Links,
        runtime: Runtime,
        remapping: Remapping,
        registry: ContainerRegistry,
    ) -> None:
        self._networks = networks
        self._layout = layout
        self._links = links
        self._runtime = runtime
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._remapping = remapping
        self._registry = registry

    async def join_all(
        self, record: ContainerRecord, undo: AsyncExitStack
    ) -> tuple[NetlinkScript, ...]:
        """Join every wanted network; ``undo`` gets what leaves them again.

        ``record.endpoints`` holds the granted places afterwards.
        """
        record.endpoints, record.endpoint_interfaces = {}, {}
        if (
            record.host_config.network_mode.startswith("container:")
            or record.config.network_disabled
        ):
            return ()
        undo.callback(self._stop_names, record.id)
        undo.callback(self.settle_links)
        scripts = []
        ports = port_requests(record)
        gateways = self._networks.gateways(list(record.networks))
        for index, (network, settings) in enumerate(list(record.networks.items())):
            request = EndpointRequest(
                container_id=record.id,
                container_name=record.name,
                network=network,
                settings=settings,
                ports=ports if network == gateways.ports else (),
                interface=f"eth{index}",
                default_route=network == gateways.ipv4,
                default_route_ipv6=network == gateways.ipv6,
                hostname=record.config.hostname,
            )
            endpoint = await self._networks.join(request)
            undo.push_async_callback(self._networks.leave, record.id, endpoint.network_id)
            record.endpoints[endpoint.network_name] = store(endpoint)
            # What a stopped container shows of its networks.
            record.networks[network] = msgspec.structs.replace(
                settings,
                network_id=endpoint.network_id,
                dns_names=endpoint.settings.dns_names,
            )
            record.endpoint_interfaces[endpoint.network_name] = request.interface
            scripts.append(endpoint.script)
        self.settle_links()
        return tuple(scripts)

    async def leave_all(self, record: ContainerRecord) -> None:
        """Leave every network that the container is in; idempotent."""
        self._stop_names(record.id)
        for name, endpoint in record.endpoints.items():
            await self._take_from_sharers(
                record, endpoint, record.endpoint_interfaces.get(name, "")
            )
            await self._networks.leave(record.id, endpoint.network_id)
        record.endpoints, record.endpoint_interfaces = {}, {}
        self.settle_links()

    async def _take_from_sharers(
        self, record: ContainerRecord, endpoint: StoredEndpoint, interface: str
    ) -> None:
        """Take an interface whose address is given back out of a namespace that lives on, because
        another container is in it."""
        script = self._networks.removal_script(endpoint.network_id, interface)
        mode = f"container:{record.id}"
        if script is None or record.state.running:
            return
        for sharer in self._registry:
            if sharer.record.host_config.network_mode == mode and sharer.record.state.running:
                # It may be ending, too, or not have been started since this one was.
                with suppress(DeskdError):
                    await self._runtime.run_job("netlink", job(script, sharer.record.state.pid), ())

    async def restore(self, records: Sequence[ContainerRecord]) -> None:
        """Tell the networks, after a restart, which places running containers hold."""
        await self._networks.restore(
            [
                (record.id, unstore(endpoint))
                for record in records
                for endpoint in record.endpoints.values()
            ],
            {record.id: record.name for record in records},
        )
        self.settle_links()
        for record in records:
            self.serve_names(record)

    def renamed(self, record: ContainerRecord) -> None:
        """Let others find the container by its new name."""
        for endpoint in self._networks.renamed(record.id, record.name):
            record.endpoints[endpoint.network_name] = store(endpoint)

    def unlink(self, parent: str, alias: str) -> None:
        """Forget a link and what it opened. Raises ``NotFound``."""
        self._links.unlink(parent, alias)
        self.settle_links()

    def settle_links(self) -> None:
        """Open to linked containers what they may reach now, and nothing else."""
        self._networks.open_linked(self._links.open_ports())

    # --- the name server ------------------------------------------------------------------------

    def has_names(self, record: ContainerRecord) -> bool:
        """Tell whether the container finds others by name."""
        return self._networks.has_name_server(
            [endpoint.network_id for endpoint in record.endpoints.values()]
        )

    def serve_names(self, record: ContainerRecord) -> None:
        """Answer a running container's questions, from a moment later on; what it asks until then
        waits in its sockets."""
        if record.endpoints and self.has_names(record):
            task = asyncio.create_task(self._serve_names(record, make_in=0))
            self._serving[record.id] = task
            task.add_done_callback(lambda done: self._served(record, done))

    def _served(self, record: ContainerRecord, done: asyncio.Task[None]) -> None:
        if self._serving.get(record.id) is done:
            del self._serving[record.id]
        if not done.cancelled() and done.exception() is not None:
            log.warning("container %s finds no names: %s", record.short_id, done.exception())

    async def _serve_names(self, record: ContainerRecord, *, make_in: int) -> None:
        with suppress(Conflict):  # it has ended meanwhile
            sockets = await self._runtime.name_sockets(record.id, make_in=make_in)
            if sockets is not None:
                inner = InnerSockets(self._runtime, record.state.pid)
                self._networks.serve_names(record.id, *sockets, record.host_config, inner)

    async def connected(self, record: ContainerRecord, pid: int) -> None:
        """Give a running container that was put into a network its name server, if it has none."""
        if self.has_names(record) and not self._networks.serves_names(record.id):
            edited = self._resolv_conf_was_edited(record)
            await self._serve_names(record, make_in=pid)
            if not edited:
                self._write_resolv_conf(record)

    def _stop_names(self, container_id: str) -> None:
        task = self._serving.pop(container_id, None)
        if task is not None:
            task.cancel()
        self._networks.stop_names(container_id)

    async def close(self) -> None:
        """Stop what is under way; containers keep their sockets."""
        tasks = list(self._serving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- files ----------------------------------------------------------------------------------

    async def write_files(self, record: ContainerRecord) -> tuple[str, str, str]:
        """Write hosts, hostname and resolv.conf; return their paths in this order.

        A container that shares another's network shares these files too: its caller gives the
        other's record.
        """
        host = record.host_config
        named = self._laptop_names(record)
        gateway = ""
        if any(extra.endswith(":host-gateway") for extra in host.extra_hosts or []):
            gateway = await self._networks.host_gateway()
        elif named:
            with suppress(DeskdError):  # without bridges such a container still has the host's
                gateway = await self._networks.host_gateway()
        lines = [
            "127.0.0.1\tlocalhost",
            "::1\tlocalhost ip6-localhost ip6-loopback",
            "fe00::0\tip6-localnet",
            "ff00::0\tip6-mcastprefix",
            "ff02::1\tip6-allnodes",
            "ff02::2\tip6-allrouters",
        ]
        if host.network_mode == "host":
            lines = _machine_hosts() or lines
        for extra in host.extra_hosts or []:
            name, _, address = extra.partition(":")
            if address == "host-gateway":
                address = gateway
            lines.append(f"{address}\t{name}")
        if named and gateway:
            lines.append(f"{gateway}\t{' '.join(named)}")
        names = _own_names(record)
        lines += [
            f"{address}\t{names}"
            for endpoint in record.endpoints.values()
            for address in (endpoint.settings.ip_address, endpoint.settings.global_ipv6_address)
            if address
        ]
        lines += self._links.hosts_lines(record)
        return (
            self._write(record, "hosts", "\n".join(lines) + "\n"),
            self._write(record, "hostname", record.config.hostname + "\n"),
            self._write_resolv_conf(record),
        )

    def _laptop_names(self, record: ContainerRecord) -> list[str]:
        """Return the laptop's names that a container's hosts file has to tell: it has no name
        server of ours, which knows them, and no other meaning for them."""
        host = record.host_config
        if host.network_mode == "none" or self.has_names(record):
            return []
        own = {extra.partition(":")[0] for extra in host.extra_hosts or []}
        return [name for name in LAPTOP_NAMES if name not in own]

    def _write_resolv_conf(self, record: ContainerRecord) -> str:
        host = record.host_config
        networks = [endpoint.network_id for endpoint in record.endpoints.values()]
        text = self._networks.resolv_conf(host, networks or list(record.networks))
        path = self._write(record, "resolv.conf", text)
        os.utime(path, ns=(_mark_ns(record), _mark_ns(record)))
        return path

    def _resolv_conf_was_edited(self, record: ContainerRecord) -> bool:
        """Tell whether somebody wrote to a container's resolv.conf since it was given."""
        path = self._layout.container_file(record.id, "resolv.conf")
        return os.stat(path).st_mtime_ns != _mark_ns(record)

    def refresh_followers(self, container: Container) -> None:
        """Tell those that are linked to a container its address, which may be another now."""
        for parent in self._links.followers(container):
            path = self._layout.container_file(parent.id, "hosts")
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                before = file.read()
            try:
                after = with_lines(before, self._links.hosts_lines(parent.record))
            except Conflict:  # another of its links has ended; that one's start brings this again
                continue
            if after != before:
                self._write(parent.record, "hosts", after)

    def files(self, container_id: str) -> tuple[str, str, str]:
        """Return the paths that ``write_files`` fills."""
        return (
            self._layout.container_file(container_id, "hosts"),
            self._layout.container_file(container_id, "hostname"),
            self._layout.container_file(container_id, "resolv.conf"),
        )

    def _write(self, record: ContainerRecord, name: str, text: str) -> str:
        path = self._layout.container_file(record.id, name)
        owner = self._remapping.of(record.host_config).root
        # Never replaced, always rewritten: a running container has the inode bound.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(descriptor, text.encode("utf-8", "surrogateescape"))
            if owner != (0, 0):
                os.fchown(descriptor, *owner)
        finally:
            os.close(descriptor)
        return path


def _mark_ns(record: ContainerRecord) -> int:
    """Return the time of modification by which a resolv.conf is known as the engine's own. It is
    none of the clock's, which may be set meanwhile; whole seconds, because some file systems have
    no others."""
    return record.created_ns // 10**9 * 10**9


def _own_names(record: ContainerRecord) -> str:
    """Return what a container's hosts file calls itself: the full name first, then the short."""
    full = record.config.hostname or record.short_id
    if record.config.domainname:
        full += f".{record.config.domainname}"
    short, dot, _ = full.partition(".")
    return f"{full} {short}" if dot else full


def _machine_hosts() -> list[str]:
    try:
        with open("/etc/hosts", encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def port_requests(record: ContainerRecord) -> tuple[PortRequest, ...]:
    """Return what is to be published: ``-p`` and, with ``-P``, every exposed port."""
    host = record.host_config
    wanted: dict[tuple[int, str], tuple[PortBinding, ...]] = {}
    for text, bindings in (host.port_bindings or {}).items():
        wanted[parse_port(text)] = tuple(bindings or [PortBinding()])
    if host.publish_all_ports:
        for text in record.config.exposed_ports or {}:
            wanted.setdefault(parse_port(text), (PortBinding(),))
    return tuple(
        PortRequest(number, protocol, bindings) for (number, protocol), bindings in wanted.items()
    )


def chooses_ports(record: ContainerRecord) -> bool:
    """Tell whether the engine chooses a port on the machine for the container."""
    bindings = [binding for request in port_requests(record) for binding in request.bindings]
    return any(binding.host_port in ("", "0") for binding in bindings)


def published_ports(record: ContainerRecord) -> list[dict[str, Any]]:
    """Return the granted ports as the API's container list shows them (``Port``)."""
    ports = []
    for endpoint in record.endpoints.values():
        for name, bindings in endpoint.ports.items():
            number, protocol = parse_port(name)
            for binding in bindings:
                ports.append(
                    {
                        "IP": binding.host_ip,
                        "PrivatePort": number,
                        "PublicPort": int(binding.host_port),
                        "Type": protocol,
                    }
                )
    return ports


def job(script: NetlinkScript, pid: int) -> dict[str, object]:
    """Return the arguments of the runtime's job ``netlink`` for a running process."""
    return {
        "pid": pid,
        "outside": [message.hex() for message in script.outside],
        "outside_pid_offsets": list(script.outside_pid_offsets),
        "inside": [message.hex() for message in script.inside],
        "sysctls": [list(item) for item in script.sysctls],
    }


def store(endpoint: Endpoint) -> StoredEndpoint:
    """Keep what outlives the engine; the netlink script is used once."""
    return StoredEndpoint(
        network_id=endpoint.network_id,
        network_name=endpoint.network_name,
        endpoint_id=endpoint.endpoint_id,
        settings=endpoint.settings,
        ports={name: list(bindings) for name, bindings in endpoint.ports.items()},
        driver=endpoint.driver,
    )


def unstore(stored: StoredEndpoint) -> Endpoint:
    """The opposite of ``store``, without the script."""
    return Endpoint(
        network_id=stored.network_id,
        network_name=stored.network_name,
        endpoint_id=stored.endpoint_id,
        settings=stored.settings,
        script=NetlinkScript(),
        ports={name: tuple(bindings) for name, bindings in stored.ports.items()},
        driver=stored.driver,
    )
