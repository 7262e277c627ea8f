"""Networks as clients use them: the network part's operations with their events, and joining or
leaving a network while a container runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from deskd.domain.container import EndpointSettings
from deskd.domain.filters import Filters
from deskd.domain.network import (
    Endpoint,
    EndpointRequest,
    Gateways,
    NetlinkScript,
    Network,
    NetworkCreateRequest,
    NetworkCreateResponse,
    PortRequest,
)
from deskd.domain.state import ContainerRecord, StoredEndpoint
from deskd.errors import DeskdError, Forbidden, InvalidArgument, NotFound
from deskd.services.containers.endpoints import Endpoints, job, port_requests, store
from deskd.services.containers.merging import parse_port
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.events import Events
from deskd.services.ports import ContainerNetworks, Runtime

log = logging.getLogger(__name__)


class NetworkAdministration(ContainerNetworks, Protocol):
    """What the network part offers beyond joining and leaving."""

    async def list_networks(
        self, filters: Mapping[str, list[str]] | None = None
    ) -> list[Network]: ...
    async def inspect(self, reference: str) -> Network: ...
    async def create(self, request: NetworkCreateRequest) -> NetworkCreateResponse: ...
    async def remove(self, reference: str) -> Network: ...
    async def prune(self, filters: Mapping[str, list[str]] | None = None) -> list[Network]: ...
    async def interfaces_removed(self) -> None: ...
    def default_route(self, network_id: str, interface: str, version: int) -> NetlinkScript: ...
    def stray_script(self, interface: str) -> NetlinkScript: ...
    def publish(
        self, container_id: str, network_id: str, ports: Sequence[PortRequest]
    ) -> Endpoint: ...


class Networks:
    """The network service."""

    def __init__(
        self,
        administration: NetworkAdministration,
        registry: ContainerRegistry,
        runtime: Runtime,
        events: Events,
        endpoints: Endpoints,
        on_removal: Callable[[Network], Awaitable[None]],
    ) -> None:
        self._administration = administration
        self._on_removal = on_removal
        self._endpoints = endpoints
        self._registry = registry
        self._runtime = runtime
        self._events = events

    async def select(self, filters: Filters) -> list[Network]:
        """Return matching networks, without their containers."""
        return await self._administration.list_networks(filters.as_mapping())

    async def inspect(self, reference: str) -> Network:
        """Return a network with its containers. Raises ``NotFound``."""
        return await self._administration.inspect(reference)

    async def create(self, request: NetworkCreateRequest) -> NetworkCreateResponse:
        """Make a network."""
        created = await self._administration.create(request)
        self._tell("create", created.id, request.name, request.driver or "bridge")
        return created

    async def remove(self, reference: str) -> None:
        """Remove a network that nothing uses."""
        await self._removed(await self._administration.remove(reference))

    async def prune(self, filters: Filters) -> list[str]:
        """Remove the user's networks that nothing uses; return their names."""
        removed = await self._administration.prune(filters.as_mapping())
        for network in removed:
            await self._removed(network)
        self._events.publish("network", "prune", "", {"reclaimed": "0"})
        return [network.name for network in removed]

    async def _removed(self, network: Network) -> None:
        await self._on_removal(network)
        self._tell("destroy", network.id, network.name, network.driver)

    async def connect(self, network: str, container: str, settings: EndpointSettings) -> None:
        """Put a container into a network; a running one gets the interface at once.

        Raises ``InvalidArgument`` and ``Forbidden`` where it cannot be in it.
        """
        found = self._registry.get(container)
        described = await self._administration.inspect(network)
        async with found.lock:
            record = found.record
            _check_connectable(record, described)
            if described.name in record.networks or described.id in record.networks:
                raise Forbidden(
                    f"endpoint with name {record.name} already exists in network {described.name}"
                )
            self._administration.check_wish(described.id, settings)
            running = record.state.running
            if running:
                await self._join_running(found, described, settings)
            record.networks[described.name] = settings
            record.changing_interface = ""
            self._registry.save(found)
        if running:  # else its start tells
            self._tell("connect", described.id, described.name, described.driver, record.id)

    async def _join_running(
        self, container: Container, network: Network, settings: EndpointSettings
    ) -> None:
        record = container.record
        taken = len(record.endpoints)
        before = self._gateways(record)
        after = self._administration.gateways(
            [endpoint.network_id for endpoint in record.endpoints.values()] + [network.id]
        )
        request = EndpointRequest(
            container_id=record.id,
            container_name=record.name,
            network=network.id,
            settings=settings,
            interface=f"eth{_next_interface(record.endpoint_interfaces, taken)}",
            ports=port_requests(record) if after.ports == network.id and not before.ports else (),
            default_route=after.ipv4 == network.id and not before.ipv4,
            default_route_ipv6=after.ipv6 == network.id and not before.ipv6,
            hostname=record.config.hostname,
        )
        record.changing_interface = request.interface
        self._registry.save(container)
        endpoint = await self._administration.join(request)
        name = endpoint.network_name
        removal = self._administration.removal_script(endpoint.network_id, request.interface)
        try:
            if removal is not None:  # an engine that was killed may have left one of this name
                await self._send(record, removal)
            await self._send(record, endpoint.script)
            record.endpoint_interfaces[name] = request.interface
            record.endpoints[name] = store(endpoint)
            await self._settle_gateways(
                record,
                Gateways(before.ipv4 or after.ipv4, before.ipv6 or after.ipv6),
            )
            self._endpoints.settle_links()
            await self._endpoints.connected(record, record.state.pid)
        except BaseException:
            record.endpoints.pop(name, None)
            record.endpoint_interfaces.pop(name, None)
            if removal is not None:
                with contextlib.suppress(DeskdError):  # it need not have come into being
                    await self._send(record, removal)
            await self._administration.leave(record.id, endpoint.network_id)
            raise

    async def _send(self, record: ContainerRecord, script: NetlinkScript) -> None:
        await self._runtime.run_job("netlink", job(script, record.state.pid), ())

    def _gateways(self, record: ContainerRecord) -> Gateways:
        """Return the networks by which a running container sends what goes out."""
        return self._administration.gateways(
            [endpoint.network_id for endpoint in record.endpoints.values()]
        )

    async def _settle_gateways(self, record: ContainerRecord, before: Gateways) -> None:
        """Move a running container's default routes where they belong, after a change."""
        now = self._gateways(record)
        for version, old, gateway in ((4, before.ipv4, now.ipv4), (6, before.ipv6, now.ipv6)):
            for name, endpoint in record.endpoints.items():
                if endpoint.network_id == gateway and gateway != old:
                    interface = record.endpoint_interfaces[name]
                    script = self._administration.default_route(gateway, interface, version)
                    await self._send(record, script)

    async def disconnect(self, network: str, container: str, *, force: bool) -> None:
        """Take a container out of a network. Raises ``NotFound`` where it is not in it."""
        found = self._registry.find(container)
        if found is None:
            raise NotFound(
                f"endpoint {container} not found" if force else f"No such container: {container}"
            )
        try:
            described = await self._administration.inspect(network)
        except NotFound:
            if await self._forget_network(found, network):
                return
            raise
        async with found.lock:
            record = found.record
            if described.name not in record.networks and described.id not in record.networks:
                raise Forbidden(
                    f"container {record.id} is not connected to network {described.name}"
                )
            if described.name == "host":
                raise InvalidArgument(_HOST)
            left = record.endpoints.get(described.name)
            before = self._gateways(record) if record.state.running else Gateways()
            record.networks.pop(described.name, None)
            record.networks.pop(described.id, None)
            record.endpoints.pop(described.name, None)
            interface = record.endpoint_interfaces.pop(described.name, "")
            # First of all in the record: should the engine be killed now, its next start takes the
            # interface away.
            record.changing_interface = interface
            self._registry.save(found)
            removal = self._administration.removal_script(described.id, interface)
            try:
                if removal is not None and record.state.running and left is not None:
                    await self._send(record, removal)
            finally:  # the process may have just ended, and its interfaces with it
                await self._administration.leave(record.id, described.id)
            await self._administration.interfaces_removed()
            self._endpoints.settle_links()
            if record.state.running and left is not None:
                await self._settle_gateways(record, before)
                self._move_ports(record, left)
            record.changing_interface = ""
            self._registry.save(found)
        self._tell("disconnect", described.id, described.name, described.driver, record.id)

    async def reconcile(self) -> None:
        """End what an engine that was killed had begun to change in running containers' networks:
        take away interfaces that no record knows, give the default routes and published ports that
        it owed. Call it when the networks are ready."""
        for container in list(self._registry):
            if not container.record.changing_interface:
                continue
            async with container.lock:
                record = container.record
                try:
                    if record.state.running:
                        if record.changing_interface not in record.endpoint_interfaces.values():
                            stray = self._administration.stray_script(record.changing_interface)
                            await self._send(record, stray)
                        await self._settle_gateways(record, Gateways())
                        self._publish_wanted(record)
                except DeskdError as error:
                    log.warning("the networks of container %s: %s", record.short_id, error)
                record.changing_interface = ""
                self._registry.save(container)

    def _publish_wanted(self, record: ContainerRecord) -> None:
        gateway = self._gateways(record).ports
        if gateway and not any(endpoint.ports for endpoint in record.endpoints.values()):
            ports = port_requests(record)
            if ports:
                endpoint = self._administration.publish(record.id, gateway, ports)
                record.endpoints[endpoint.network_name] = store(endpoint)

    async def _forget_network(self, container: Container, network: str) -> bool:
        """Take a network that is no more out of what a stopped container will join; tell whether
        it was in there."""
        async with container.lock:
            record = container.record
            if record.state.running or network not in record.networks:
                return False
            del record.networks[network]
            self._registry.save(container)
            return True

    def _move_ports(self, record: ContainerRecord, left: StoredEndpoint) -> None:
        """Publish by another network what was published by the one that a container has left."""
        gateway = self._gateways(record).ports
        if not gateway or not left.ports:
            return
        ports = []
        for text, bindings in left.ports.items():
            number, protocol = parse_port(text)
            ports.append(PortRequest(number, protocol, tuple(bindings)))
        endpoint = self._administration.publish(record.id, gateway, ports)
        record.endpoints[endpoint.network_name] = store(endpoint)

    def _tell(
        self, action: str, network_id: str, name: str, driver: str, container_id: str = ""
    ) -> None:
        attributes = {"name": name, "type": driver}
        if container_id:
            attributes["container"] = container_id
        self._events.publish("network", action, network_id, attributes)


_HOST = "container cannot be disconnected from host network or connected to host network"
_SHARED = (
    "container sharing network namespace with another container or host cannot be connected to "
    "any other network"
)
_PRIVATE = (
    "container cannot be connected to multiple networks with one of the networks in private "
    "(none) mode"
)


def _check_connectable(record: ContainerRecord, network: Network) -> None:
    """Raise ``InvalidArgument`` where a container's kind of network allows no other."""
    mode = record.host_config.network_mode
    if mode.startswith("container:") or mode == "host":
        raise InvalidArgument(_SHARED)
    if network.name == "host":
        raise InvalidArgument(_HOST)
    if record.networks and (network.name == "none" or "none" in record.networks):
        raise InvalidArgument(_PRIVATE)


def _next_interface(used: Mapping[str, str], start: int) -> int:
    taken = set(used.values())
    number = start
    while f"eth{number}" in taken:
        number += 1
    return number


def wanted(settings: EndpointSettings | None) -> EndpointSettings:
    """Return the wish in a client's settings: results of an earlier inspect are not wishes."""
    return msgspec.structs.replace(
        settings or EndpointSettings(), network_id="", endpoint_id="", gateway=""
    )
