"""Networks for containers and for the API: implements ``ContainerNetworks`` of the services.

Decision on blocking: joining and leaving touch no kernel object but the firewall's map (one
transaction, 0.15 ms) and bound sockets, and so run on the event loop; the veth pair is made by
the container's monitor. Making and deleting bridges and links runs in threads.

What lives when: the table and the bridges stay while any container has an endpoint, also without
an engine. An engine that closes with no endpoint in use takes all of it away; the next start
makes it again. ``purge`` does the same for an engine that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from deskd.domain.container import EndpointSettings, HostConfig
from deskd.domain.network import (
    Endpoint,
    EndpointRequest,
    Gateways,
    LinkedPort,
    NetlinkScript,
    Network,
    NetworkCreateRequest,
    NetworkCreateResponse,
    NetworkRecord,
    NetworkRecords,
    PortRequest,
)
from deskd.errors import DeskdError, Forbidden, NotFound
from deskd.kernel.name_sockets import ADDRESS as NAME_SERVER
from deskd.network import catalog as networks
from deskd.network import resolver
from deskd.network.address_book import AddressBook
from deskd.network.addresses import unused_subnets
from deskd.network.bridge import EngineNames, host_interface, peer_index, remove_link
from deskd.network.drivers.bridged import BridgeDriver
from deskd.network.drivers.contract import Driver
from deskd.network.drivers.plain import PlainDriver
from deskd.network.drivers.stacked import StackedDriver, removal
from deskd.network.drivers.way_out import default_route
from deskd.network.endpoint_settings import addresses_of, port_bindings
from deskd.network.faults import NetworkFaults
from deskd.network.firewall import Opening
from deskd.network.ipam import Address
from deskd.network.kernel_state import KernelState, purge
from deskd.network.laptop import AGENT_ADDRESS, LaptopRelay
from deskd.network.members import Member, Members
from deskd.network.name_server import NameServer
from deskd.network.parent_options import STACKED
from deskd.network.publishing import Publishing, forgetting_flows
from deskd.network.selection import PRUNE_FILTERS, selected
from deskd.record import replace
from deskd.settings import HOST_BY_AGENT, Settings

if TYPE_CHECKING:
    from deskd.network.name_forwarding import ClientSockets

__all__ = ["NetworkService", "purge"]
from deskd.network.wishes import check_wish

log = logging.getLogger(__name__)

T = TypeVar("T")


class NetworkService:
    """All networks of one engine. Use from one event loop; close it before the loop ends."""

    def __init__(self, settings: Settings, records: NetworkRecords) -> None:
        self._settings = settings
        self._names = EngineNames.for_data_root(settings.data_root, settings.bridge)
        networks.check_interface_name(self._names.default_bridge)
        self._catalog = networks.Catalog(
            records,
            self._names.default_bridge,
            settings.mtu,
            inter_container=settings.icc,
            enable_ipv6=settings.ipv6,
        )
        self._kernel = KernelState(self._names, self._catalog, settings)
        self._publishing = Publishing(lambda: self._kernel.firewall)
        self.laptop = LaptopRelay()
        self._machine_resolver = resolver.MachineResolver()
        self._openings: frozenset[Opening] = frozenset()
        self.faults = NetworkFaults(self._names.table)
        self._name_server = NameServer(
            lambda: resolver.servers_for(self._machine_resolver.read()),
            self.faults.dns_fault,
            self._laptop_address,
        )
        self._members = Members(self._catalog, self._name_server.table)
        self._addresses = AddressBook(self._catalog)
        self._bridge_driver = BridgeDriver(
            self._kernel, self._addresses, self._publishing, self._members
        )
        stacked = StackedDriver(self._catalog, self._kernel, self._addresses, self._members)
        self._drivers: dict[str, Driver] = {
            "bridge": self._bridge_driver,
            "host": PlainDriver(has_own_loopback=False),
            "ipvlan": stacked,
            "macvlan": stacked,
            "null": PlainDriver(has_own_loopback=True),
        }
        self._change = asyncio.Lock()
        self._is_ready = False
        self._background: set[asyncio.Task[Any]] = set()

    # --- set-up and end -------------------------------------------------------------------------

    async def ready(self) -> None:
        """Make the default bridge, the known networks and the firewall, once.

        Call it in the background after the server listens and after ``restore``. A failure is
        raised here and to everyone who joins a bridge network, and the next call tries again.
        """
        if self._is_ready:
            return
        await self._to_its_end(self._set_up)

    async def _set_up(self) -> None:
        if not self._is_ready:
            await asyncio.to_thread(
                self._kernel.set_up,
                in_use=self._is_in_use(),
                keep_veths=self._members.host_interfaces(),
                publications=self._members.publications(),
                openings=tuple(self._openings),
                laptop=self.laptop.start() if self._is_laptop_by_agent else None,
            )
            await self.faults.begin()
            self._is_ready = True

    async def _to_its_end(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do one change of the kernel at a time, to its end also where the caller is cancelled:
        a thread cannot be stopped, and what it makes must not be forgotten."""

        async def run() -> T:
            async with self._change:
                return await work()

        task = asyncio.create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End with the engine: containers keep their network; without any, nothing is left."""
        await self._name_server.close()
        await self.interfaces_removed()
        await self.faults.close()
        async with self._change:
            if not self._is_in_use():
                await asyncio.to_thread(self._kernel.remove_all)
            self._kernel.close()
            await self._publishing.close()
            await self.laptop.close()
            self._is_ready = False

    def _is_in_use(self) -> bool:
        """Tell whether a container has an endpoint that needs what is in the kernel."""
        return any(member.addresses for member in self._members)

    async def restore(
        self,
        endpoints: Sequence[tuple[str, Endpoint]],
        container_names: Mapping[str, str] | None = None,
    ) -> None:
        """Take up the endpoints of running containers after a restart of the engine.

        Call it before ``ready``: later, ports of running containers would be withdrawn for the
        moment between the two. What cannot be restored (a port that somebody took meanwhile) is
        logged and left out; the container keeps running.
        """
        self._members.call(container_names or {})
        for container_id, endpoint in endpoints:
            record = self._catalog.get(endpoint.network_id)
            if record is None:
                log.warning(
                    "container %s is in network %s, which no longer exists",
                    container_id[:12],
                    endpoint.network_name,
                )
                continue
            member = self._restored(record, endpoint)
            self._members.add(container_id, record.id, member)
            self._members.make_known(container_id, record)
            if member.is_bridged:
                self.faults.add_present(container_id, endpoint)
        if self._is_ready:
            await self._to_its_end(
                lambda: asyncio.to_thread(
                    self._kernel.rebuild_firewall,
                    self._members.publications(),
                    tuple(self._openings),
                )
            )

    def _restored(self, record: NetworkRecord, endpoint: Endpoint) -> Member:
        addresses = addresses_of(endpoint.settings)
        if not addresses:
            return Member(endpoint)
        for address in addresses:
            try:
                self._addresses.of(record).reserve(str(address))
            except DeskdError as error:
                log.warning("address %s cannot be restored: %s", address, error)
        publications = self._publishing.restore(endpoint, addresses)
        return Member(endpoint, addresses, tuple(publications))

    # --- containers -----------------------------------------------------------------------------

    def check_wish(self, network: str, settings: EndpointSettings) -> None:
        """Raise ``InvalidArgument`` for what no ``join`` could grant; a network that is not there
        is left to ``join``."""
        with contextlib.suppress(NotFound):
            check_wish(self._catalog.find(network), settings)

    async def join(self, request: EndpointRequest) -> Endpoint:
        """Reserve an address and ports, publish, and return what the launcher has to do."""
        record = self._catalog.find(request.network)
        if (request.container_id, record.id) in self._members:
            raise Forbidden(
                f"container {request.container_name or request.container_id[:12]} is already in "
                f"network {record.name}"
            )
        if record.config_only:
            raise Forbidden(
                f"cannot create endpoint on configuration-only network {record.name}: make a "
                f"network with --config-from {record.name}"
            )
        driver = self._drivers[record.driver]
        if driver.uses_kernel:
            await self.ready()
            # A removal that ran while this task waited has taken the network away.
            record = self._catalog.find(record.id)
        member = await driver.join(record, request)
        self._members.add(request.container_id, record.id, member)
        if member.is_bridged:
            try:
                endpoint = await self.faults.join(request.container_id, member.endpoint)
            except BaseException:
                await self.leave(request.container_id, record.id)
                raise
            member = msgspec.structs.replace(member, endpoint=endpoint)
            self._members.add(request.container_id, record.id, member)
        self._forget_flows(member)
        self._members.call({request.container_id: request.container_name})
        self._members.make_known(request.container_id, record)
        return member.endpoint

    async def leave(self, container_id: str, network_id: str) -> None:
        """Give back everything that ``join`` took; idempotent.

        The interface ends with the container's namespace. Where that lives on (another
        container shares it), one on a bridge is deleted a moment later, in the background; for
        others see ``removal_script``.
        """
        member = self._members.remove(container_id, network_id)
        if member is None or not member.addresses:
            return
        if member.is_bridged:
            await self.faults.leave(container_id, network_id)
        record = self._catalog.get(network_id)
        try:
            self._publishing.withdraw(member.publications, is_ready=self._is_ready)
        finally:
            if record is not None:
                self._addresses.of(record).release(member.addresses)
            if member.is_bridged:
                name, _ = host_interface(member.endpoint.endpoint_id)
                removal = partial(remove_link, name)
                self._in_background(f"interface {name} cannot be deleted", removal)
            self._forget_flows(member)

    def _forget_flows(self, member: Member) -> None:
        """Let UDP clients that keep their port meet the published port as it is now."""
        forgetting = forgetting_flows(member.publications)
        if forgetting is not None:
            self._in_background("UDP flows cannot be forgotten (CONFIG_NF_CT_NETLINK)", forgetting)

    def _in_background(self, failure: str, work: Callable[[], object]) -> None:
        async def run() -> None:
            try:
                await asyncio.to_thread(work)
            except OSError as error:
                log.warning("%s: %s", failure, error)

        task = asyncio.create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def interfaces_removed(self) -> None:
        """Wait until the interfaces of everyone who left are gone (``network disconnect``)."""
        while self._background:
            await asyncio.wait(self._background)

    def renamed(self, container_id: str, name: str) -> list[Endpoint]:
        """Take note of a container's new name, for inspect and for those who ask for it; return
        its endpoints as they are now."""
        self._members.rename(container_id, name)
        return self.endpoints_of(container_id)

    def open_linked(self, ports: Sequence[LinkedPort]) -> None:
        """Let exactly these connections pass where the default network's containers are apart."""
        record = self._catalog.find(networks.DEFAULT_NETWORK)
        wanted: frozenset[Opening] = frozenset()
        if not networks.allows_inter_container(record):
            bridge = networks.bridge_name(record)
            wanted = frozenset(
                Opening(
                    bridge,
                    IPv4Address(item.source),
                    IPv4Address(item.target),
                    item.protocol,
                    item.port,
                )
                for item in ports
            )
        if self._is_ready:
            self._kernel.firewall.shut(self._openings - wanted)
            self._kernel.firewall.open(wanted - self._openings)
        self._openings = wanted

    # --- names ----------------------------------------------------------------------------------

    def has_name_server(self, references: Sequence[str]) -> bool:
        """Tell whether a container in these networks finds others by name."""
        return any(networks.has_name_server(self._catalog.find(item)) for item in references)

    def serve_names(
        self,
        container_id: str,
        udp: socket.socket,
        tcp: socket.socket,
        host_config: HostConfig,
        inner: ClientSockets,
    ) -> None:
        """Answer a container's questions at these sockets until ``stop_names``."""
        servers = host_config.dns or self._settings.dns
        self._name_server.serve(container_id, udp, tcp, tuple(servers), inner)

    def serves_names(self, container_id: str) -> bool:
        """Tell whether a container's questions are answered."""
        return self._name_server.serves(container_id)

    def stop_names(self, container_id: str) -> None:
        """Let go of a container's sockets; idempotent."""
        self._name_server.stop(container_id)

    def endpoints_of(self, container_id: str) -> list[Endpoint]:
        """Return a container's endpoints in the order in which it joined."""
        return self._members.endpoints_of(container_id)

    def gateways(self, references: Sequence[str]) -> Gateways:
        """Return which of these networks lead out."""
        return networks.gateways(
            {reference: self._catalog.find(reference) for reference in references}
        )

    def default_route(self, network_id: str, interface: str, version: int) -> NetlinkScript:
        """Return what makes a running container send everything out by one of its networks."""
        record = self._catalog.find(network_id)
        given, index = self._addresses.of(record), peer_index(interface)
        request = default_route(record, given, index, version, replace=True)
        return NetlinkScript(inside=(request,))

    def stray_script(self, interface: str) -> NetlinkScript:
        """Return what takes an interface of whatever network away inside a container, if it is
        there."""
        return removal(interface)

    def removal_script(self, network_id: str, interface: str) -> NetlinkScript | None:
        """Return what takes a running container's interface away from inside, before ``leave``;
        ``None`` where ``leave`` does it."""
        record = self._catalog.get(network_id)
        return removal(interface) if record and record.driver in STACKED else None

    def publish(self, container_id: str, network_id: str, ports: Sequence[PortRequest]) -> Endpoint:
        """Publish ports of a container by another of its networks than the one that had them."""
        member = self._members[container_id, network_id]
        record = self._catalog.find(network_id)
        request = EndpointRequest(
            container_id,
            self._members.name_of(container_id),
            record.name,
            ports=tuple(ports),
        )
        with contextlib.ExitStack() as undo:
            publications = self._publishing.publish(record, request, member.addresses, undo)
            undo.pop_all()
        endpoint = replace(member.endpoint, ports=port_bindings(publications))
        member = msgspec.structs.replace(
            member, endpoint=endpoint, publications=tuple(publications)
        )
        self._members.add(container_id, network_id, member)
        return endpoint

    def resolv_conf(self, host_config: HostConfig, references: Sequence[str]) -> str:
        """Return the text of the /etc/resolv.conf of a container in these networks."""
        records = [self._catalog.find(reference) for reference in references]
        settings = self._settings
        return resolver.text_for_container(
            self._machine_resolver.read(),
            resolver.Wishes(
                name_server=NAME_SERVER if self.has_name_server(references) else "",
                servers=tuple(host_config.dns or settings.dns),
                search=tuple(host_config.dns_search or settings.dns_search),
                options=tuple(host_config.dns_options or settings.dns_options),
                shares_machine=any(record.driver == "host" for record in records),
                has_ipv6=any(record.enable_ipv6 and not record.internal for record in records),
            ),
        )

    async def host_gateway(self) -> str:
        """Return the address by which containers reach the laptop (``host-gateway``): the machine's
        own where that is the laptop."""
        if not self._settings.host_gateway_ip or self._is_laptop_by_agent:
            await self.ready()
        return str(self._laptop_address() or "")

    def _laptop_address(self) -> Address | None:
        given = self._settings.host_gateway_ip
        if self._is_laptop_by_agent:
            return AGENT_ADDRESS
        if given:
            return ip_address(given)
        if not self._is_ready:  # the bridge may yet get another address
            return None
        default = self._addresses.of(self._catalog.find(networks.DEFAULT_NETWORK))
        return default.gateway(4) or default.gateway(6)

    @property
    def _is_laptop_by_agent(self) -> bool:
        return self._settings.host_gateway_ip == HOST_BY_AGENT

    # --- the API --------------------------------------------------------------------------------

    async def list_networks(
        self, filters: Mapping[str, Sequence[str]] | None = None
    ) -> list[Network]:
        """Return the networks that pass the API's filters, without their containers."""
        await self._settled()
        used = self._members.used_networks()
        found = selected(self._catalog.all(), filters or {}, used)
        return [networks.describe(record) for record in found]

    def known(self) -> list[Network]:
        """Return all networks as they are recorded."""
        return [networks.describe(record) for record in self._catalog.all()]

    async def inspect(self, reference: str) -> Network:
        """Return one network with its containers; raises ``NotFound``."""
        await self._settled()
        record = self._catalog.find(reference)
        return networks.describe(record, self._members.described(record.id))

    async def _settled(self) -> None:
        """Let a set-up or change that is under way end first, so that addresses are shown.

        An engine that cannot make bridges still lists its networks: the reason comes from
        ``ready`` and ``join``.
        """
        with contextlib.suppress(DeskdError):
            await self.ready()

    async def create(self, request: NetworkCreateRequest) -> NetworkCreateResponse:
        """Make a network; on an error nothing of it stays."""
        record = self._catalog.new(request)
        if record.config_only:
            self._catalog.put(record)
            return NetworkCreateResponse(id=record.id)
        await self.ready()

        async def make() -> None:
            self._catalog.new(request)  # the name may have been taken meanwhile
            await asyncio.to_thread(self._kernel.create, record)

        await self._to_its_end(make)
        unused = unused_subnets(self._catalog.find(record.id))
        return NetworkCreateResponse(
            id=record.id,
            warning=f"the subnet {unused[0]} is not used: the network has no IPv6; add --ipv6"
            if unused
            else "",
        )

    async def remove(self, reference: str) -> Network:
        """Remove a network that no container uses and return what it was."""
        record = self._catalog.find(reference)
        if record.name in networks.PREDEFINED:
            raise Forbidden(f"{record.name} is a pre-defined network and cannot be removed")
        dependents = self._catalog.dependents(record)
        if dependents:
            raise Forbidden(
                f'error while removing network: configuration network "{record.name}" is in use '
                f"by {', '.join(dependents)}: remove those first"
            )
        await self.ready()
        return networks.describe(await self._to_its_end(partial(self._remove, record.id)))

    async def _remove(self, network_id: str) -> NetworkRecord:
        record = self._catalog.find(network_id)
        if record.id in self._members.used_networks():
            raise Forbidden(
                f"error while removing network: network {record.name} id {record.id} has "
                "active endpoints: disconnect or remove its containers first"
            )
        self._catalog.delete(record.id)
        try:
            await asyncio.to_thread(self._kernel.remove, record)
        except BaseException:
            self._catalog.put(record)
            raise
        self._addresses.forget(record.id)
        self._bridge_driver.forget(record.id)
        return record

    async def prune(self, filters: Mapping[str, Sequence[str]] | None = None) -> list[Network]:
        """Remove the user-defined networks that no container uses; return what they were."""
        await self._settled()
        used = self._members.used_networks()
        found = selected(self._catalog.all(), filters or {}, used, accepted=PRUNE_FILTERS)
        unused = [
            record
            for record in found
            if not (record.name in networks.PREDEFINED or record.id in used or record.config_only)
        ]
        removed = []
        for record in unused:
            # A container that joined meanwhile keeps its network.
            with contextlib.suppress(Forbidden):
                removed.append(await self.remove(record.id))
        return removed
