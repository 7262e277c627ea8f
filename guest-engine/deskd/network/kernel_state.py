"""The networks' part of the kernel: bridges, parents and firewall of one engine, made and taken
away.

All methods block and run in threads, one at a time; the service sees to that.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Interface, ip_network

import msgspec

from deskd.domain.network import (
    OPTION_INHIBIT_IPV4,
    OPTION_MASQUERADE,
    Ipam,
    IpamConfig,
    NetworkRecord,
)
from deskd.errors import (
    Conflict,
    DeskdError,
    Forbidden,
    InvalidArgument,
    SystemFailure,
    Unsupported,
)
from deskd.kernel import netlink
from deskd.kernel.nftables import Nftables
from deskd.network import catalog as networks
from deskd.network.addresses import VERSIONS, plans_of, used_configs
from deskd.network.bridge import (
    BridgeSpec,
    EngineNames,
    Machine,
    enable_forwarding,
    enable_ipv6_forwarding,
    ensure_bridge,
    machine_lock,
    remove_stale,
)
from deskd.network.catalog import Catalog
from deskd.network.fault_rules import FaultRules
from deskd.network.firewall import BridgeRules, Firewall, LaptopRules, Opening, Publication
from deskd.network.ipam import (
    DEFAULT_POOLS,
    Pool,
    Subnet,
    SubnetPlan,
    check_config,
    choose_subnet,
    overlap,
    private_pool,
)
from deskd.network.parent_options import STACKED, parent_mode, parent_name
from deskd.network.parents import ensure_parent, remove_parent
from deskd.settings import Settings

log = logging.getLogger(__name__)


class KernelState:
    """Bridges, parents and firewall of one engine."""

    def __init__(self, names: EngineNames, catalog: Catalog, settings: Settings) -> None:
        self._names = names
        self._catalog = catalog
        self._settings = settings
        identity = catalog.find(networks.DEFAULT_NETWORK).id
        self._pools = _pools(settings, identity)
        self._indices: dict[str, int] = {}
        self._nftables: Nftables | None = None
        self._firewall: Firewall | None = None

    @property
    def firewall(self) -> Firewall:
        """The engine's table; exists after ``set_up``."""
        if self._firewall is None:
            raise SystemFailure("the container networks are not set up: restart the engine")
        return self._firewall

    def bridge_index(self, network_id: str) -> int:
        """Return the interface index of a network's bridge."""
        try:
            return self._indices[network_id]
        except KeyError:
            record = self._catalog.find(network_id)
            raise SystemFailure(
                f"network {record.name} has no bridge: the engine could not make "
                f"{networks.bridge_name(record)} when it started; remove the network and make it "
                "again"
            ) from None

    def parent_index(self, record: NetworkRecord) -> int:
        """Return the interface index of a macvlan or ipvlan network's parent.

        One that has gone is made again where the engine had made it; raises ``NotFound`` for a
        user's.
        """
        name = parent_name(record)
        with self._translated(), netlink.RouteSocket() as route:
            try:
                return socket.if_nametoindex(name)
            except OSError:
                with machine_lock():
                    ensure_parent(route, Machine.read(route), self._names, record)
            return socket.if_nametoindex(name)

    def set_up(
        self,
        *,
        in_use: bool,
        keep_veths: Collection[str],
        publications: Sequence[Publication],
        openings: Sequence[Opening],
        laptop: LaptopRules | None = None,
    ) -> None:
        """Make or repair every bridge and parent and build the firewall; remove what is stale.

        ``in_use`` tells that containers need what is there, also where this fails.
        """
        with self._translated(), machine_lock(), netlink.RouteSocket() as route:
            netlink.check_kinds(route, "bridge", "veth")
            enable_forwarding()
            if any(record.enable_ipv6 for record in self._bridge_records()):
                self._try_ipv6_forwarding()
            if self._nftables is None:
                self._nftables = Nftables()
            machine = Machine.read(route)
            kept = [networks.bridge_name(record) for record in self._bridge_records()]
            kept += [parent_name(record) for record in self._stacked_records()]
            remove_stale(route, machine, self._names, keep=kept, keep_veths=keep_veths)
            with contextlib.ExitStack() as undo:
                if not in_use:
                    undo.callback(self._remove_links, route)
                self._set_up_default(route, machine)
                for record in self._bridge_records():
                    if record.id not in self._indices:
                        self._set_up_known(route, machine, record)
                for record in self._stacked_records():
                    self._set_up_stacked(route, record)
                self._firewall = Firewall(self._names.table, self._nftables, laptop)
                self.rebuild_firewall(publications, openings)
                undo.pop_all()
            self._warn_of_foreign_drops()

    def _warn_of_foreign_drops(self) -> None:
        try:
            tables = self.firewall.foreign_drops()
        except DeskdError as error:
            # Only a hint depends on it: rules of others may need a newer libnftables to be read.
            log.info("the other firewall tables cannot be read: %s", error)
            return
        for table in tables:
            log.warning(
                "the firewall table %s drops forwarded packets by policy: containers reach "
                "nothing outside until it accepts the interface %s",
                table,
                self._names.default_bridge,
            )

    def _remove_links(self, route: netlink.RouteSocket) -> None:
        self._firewall = None
        self._indices.clear()
        remove_stale(route, Machine.read(route), self._names)

    def rebuild_firewall(
        self, publications: Sequence[Publication], openings: Sequence[Opening]
    ) -> None:
        """Make the table say exactly this, in one transaction."""
        records = [record for record in self._bridge_records() if record.id in self._indices]
        rules = [bridge_rules(record) for record in records]
        self.firewall.replace(rules, publications, openings)

    def _try_ipv6_forwarding(self) -> None:
        """A kernel that has lost its IPv6 takes that from the networks, not their IPv4."""
        try:
            enable_ipv6_forwarding()
        except DeskdError as error:
            log.warning("IPv6 does not work in container networks: %s", error)

    def _set_up_default(self, route: netlink.RouteSocket, machine: Machine) -> None:
        record = self._catalog.find(networks.DEFAULT_NETWORK)
        plans = [self._default_plan(record, machine)]
        if record.enable_ipv6:
            plans.append(self._default_ipv6_plan(record, machine))
        spec = _spec(record, plans)
        self._indices[record.id] = ensure_bridge(route, machine, self._names, spec)
        ipam = Ipam(config=[plan.config() for plan in plans])
        if record.ipam != ipam:
            self._catalog.put(msgspec.structs.replace(record, ipam=ipam))

    def _default_plan(self, record: NetworkRecord, machine: Machine) -> SubnetPlan:
        if self._settings.bip:
            interface = IPv4Interface(self._settings.bip)
            return check_config(
                IpamConfig(subnet=str(interface.network), gateway=str(interface.ip))
            )
        link = machine.link(self._names.default_bridge)
        for address, length in machine.addresses_of(link.index) if link else ():
            if address.version == 4:
                subnet = ip_network(f"{address}/{length}", strict=False)
                return check_config(IpamConfig(subnet=str(subnet), gateway=str(address)))
        return self._known_or_chosen(record, machine, version=4)

    def _default_ipv6_plan(self, record: NetworkRecord, machine: Machine) -> SubnetPlan:
        if self._settings.fixed_cidr_v6:
            return check_config(IpamConfig(subnet=self._settings.fixed_cidr_v6))
        return self._known_or_chosen(record, machine, version=6)

    def _known_or_chosen(
        self, record: NetworkRecord, machine: Machine, *, version: int
    ) -> SubnetPlan:
        """Return what the default network had before where it is free, else what is free."""
        taken = self._taken(machine, without=record)
        for config in record.ipam.config or ():
            plan = check_config(config)
            if plan.subnet.version == version and not any(
                overlap(plan.subnet, other) for other in taken
            ):
                return plan
        return check_config(IpamConfig(subnet=str(choose_subnet(self._pools[version], taken))))

    def _set_up_known(
        self, route: netlink.RouteSocket, machine: Machine, record: NetworkRecord
    ) -> None:
        """Make a user's network again; one that cannot be is logged, the others go on."""
        try:
            spec = _spec(record, plans_of(record))
            self._indices[record.id] = ensure_bridge(route, machine, self._names, spec)
        except (DeskdError, OSError) as error:
            log.warning("network %s cannot be made again: %s", record.name, error)

    def _set_up_stacked(self, route: netlink.RouteSocket, record: NetworkRecord) -> None:
        """Make the parent of a user's network again; where that cannot be, its next container
        says why."""
        try:
            ensure_parent(route, Machine.read(route), self._names, record)
        except (DeskdError, OSError) as error:
            log.warning("network %s cannot be made again: %s", record.name, error)

    def create(self, record: NetworkRecord) -> NetworkRecord:
        """Make what a new network takes and keep its record, or leave nothing."""
        if record.driver in STACKED:
            return self._create_stacked(record)
        with self._translated(), machine_lock(), netlink.RouteSocket() as route:
            machine = Machine.read(route)
            name = networks.bridge_name(record)
            if record.enable_ipv6:
                enable_ipv6_forwarding()
            record, plans = self._planned(record, machine)
            existed = machine.link(name) is not None
            with contextlib.ExitStack() as undo:
                index = ensure_bridge(route, machine, self._names, _spec(record, plans))
                if not existed:
                    undo.callback(route.request, netlink.delete_link(name))
                rules = bridge_rules(record)
                self.firewall.add_bridge(rules)
                undo.callback(self.firewall.remove_bridge, rules)
                self._catalog.put(record)
                undo.pop_all()
            self._indices[record.id] = index
        return record

    def _create_stacked(self, record: NetworkRecord) -> NetworkRecord:
        with self._translated(), machine_lock(), netlink.RouteSocket() as route:
            machine = Machine.read(route)
            record, _ = self._planned(record, machine)
            self._check_parents_networks(record)
            made = ensure_parent(route, machine, self._names, record)
            with contextlib.ExitStack() as undo:
                if made:
                    undo.callback(route.request, netlink.delete_link(parent_name(record)))
                self._catalog.put(record)
                undo.pop_all()
        return record

    def _check_parents_networks(self, record: NetworkRecord) -> None:
        """Raise ``Conflict`` where another network has the parent in a way that excludes this."""
        for other in self._stacked_records():
            if parent_name(other) != parent_name(record):
                continue
            alone = "passthru" in (parent_mode(other), parent_mode(record))
            if other.driver != record.driver or alone:
                raise Conflict(
                    f"network {other.name} is already using parent interface "
                    f"{parent_name(record)}, with driver {other.driver} and mode "
                    f"{parent_mode(other)}: the kernel cannot put this network there too"
                )

    def _planned(
        self, record: NetworkRecord, machine: Machine
    ) -> tuple[NetworkRecord, list[SubnetPlan]]:
        """Check the given subnets and choose those that are missing."""
        given = list(record.ipam.config or ())
        for config in given:
            if not config.subnet and (
                config.gateway or config.ip_range or config.auxiliary_addresses
            ):
                raise InvalidArgument(
                    "a gateway, an IP range or auxiliary addresses need a subnet: add --subnet"
                )
            if config.subnet:
                check_config(config)
        used = used_configs(record, given)
        plans: list[SubnetPlan] = []
        shown = [config for config in given if config.subnet and config not in used]
        missing = []
        for version in _versions(record):
            own = [config for config in used if (":" in config.subnet) == (version == 6)]
            if len(own) > 1 and record.driver == "bridge":
                raise Forbidden(
                    f"a bridge network takes one IPv{version} subnet: give --subnet once for each "
                    "family"
                )
            for config in own:
                plan = check_config(config)
                self._check_free(record, machine, plan, beside=plans)
                plans.append(plan)
                shown.append(plan.config(config))
            if not own:
                missing.append(version)
                taken = self._taken(machine, without=record)
                subnet = choose_subnet(self._pools[version], taken)
                plans.append(check_config(IpamConfig(subnet=str(subnet))))
                shown.append(plans[-1].config())
        record = msgspec.structs.replace(
            record,
            ipam=Ipam(options=record.ipam.options, config=shown),
            chosen_subnet=4 in missing,
            chosen_subnet_ipv6=6 in missing,
        )
        return record, plans

    def _check_free(
        self,
        record: NetworkRecord,
        machine: Machine,
        plan: SubnetPlan,
        beside: Collection[SubnetPlan],
    ) -> None:
        """Raise ``Forbidden`` where a subnet is taken: by another network, by another of the
        network's own, or, unless its containers are to be in there too, by the machine."""
        for own in beside:
            if overlap(plan.subnet, own.subnet):
                raise Forbidden(f"the subnets {own.subnet} and {plan.subnet} overlap: change one")
        for other in self._addressed():
            for config in used_configs(other, other.ipam.config or ()):
                if overlap(plan.subnet, ip_network(config.subnet)):
                    raise Forbidden(
                        f"invalid pool request: Pool overlaps with other one on this address "
                        f"space: {plan.subnet} and network {other.name} ({config.subnet})"
                    )
        if record.driver in STACKED:
            return
        for index, address, length in machine.addresses:
            subnet_there = ip_network(f"{address}/{length}", strict=False)
            if overlap(plan.subnet, subnet_there):
                link = next((link for link in machine.links if link.index == index), None)
                if link is not None and link.name != networks.bridge_name(record):
                    raise Forbidden(
                        f"the subnet {plan.subnet} overlaps with {subnet_there}, which the "
                        f"machine's interface {link.name} is in: choose another --subnet"
                    )

    def remove(self, record: NetworkRecord) -> None:
        """Take a network's rules and bridge or parent away; an interface that is not ours stays,
        and so does a parent that another network has."""
        with self._translated(), netlink.RouteSocket() as route:
            if record.driver in STACKED:
                name = parent_name(record)
                if all(parent_name(r) != name for r in self._stacked_records()):
                    remove_parent(route, Machine.read(route), self._names, name)
                return
            if self._indices.pop(record.id, None) is not None:
                self.firewall.remove_bridge(bridge_rules(record))
            machine = Machine.read(route)
            link = machine.link(networks.bridge_name(record))
            if link is not None and link.alias == self._names.alias(record.id):
                route.request(netlink.delete_link(link.name))

    def remove_all(self) -> None:
        """Take away the table and every interface that this engine made; idempotent."""
        if self._firewall is None:
            return
        with self._translated(), netlink.RouteSocket() as route:
            self._firewall.remove()
            self._remove_links(route)

    def close(self) -> None:
        """Free what this process holds."""
        self._firewall = None
        if self._nftables is not None:
            self._nftables.close()
            self._nftables = None

    def _bridge_records(self) -> list[NetworkRecord]:
        return [record for record in self._catalog.all() if record.driver == "bridge"]

    def _addressed(self) -> list[NetworkRecord]:
        """Return the networks whose subnets are theirs."""
        return [record for record in self._catalog.all() if not record.config_only]

    def _stacked_records(self) -> list[NetworkRecord]:
        return [record for record in self._catalog.all() if record.driver in STACKED]

    def _taken(self, machine: Machine, *, without: NetworkRecord) -> list[Subnet]:
        taken = machine.subnets(without=[networks.bridge_name(without)])
        for record in self._addressed():
            if record.id != without.id:
                configs = used_configs(record, record.ipam.config or ())
                taken += [ip_network(config.subnet) for config in configs]
        return taken

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise Unsupported(
                    f"the kernel lacks a part of bridge networks ({error.strerror}): use one with "
                    "CONFIG_BRIDGE and CONFIG_VETH"
                ) from error
            raise SystemFailure(
                f"the container networks cannot be changed: {error.strerror}; the engine needs "
                "CAP_NET_ADMIN"
                if error.errno == errno.EPERM
                else f"the container networks cannot be changed: {error.strerror}"
            ) from error


def _versions(record: NetworkRecord) -> list[int]:
    enabled = {4: record.enable_ipv4, 6: record.enable_ipv6}
    return [version for version in VERSIONS if enabled[version]]


def _spec(record: NetworkRecord, plans: Sequence[SubnetPlan]) -> BridgeSpec:
    """Return a network's bridge, with the addresses that it is to have."""
    inhibited = networks.is_true(record.options.get(OPTION_INHIBIT_IPV4, ""))
    return BridgeSpec(
        networks.bridge_name(record),
        record.id,
        tuple(plan for plan in plans if not (inhibited and plan.subnet.version == 4)),
        networks.bridge_mtu(record),
        inter_container=networks.allows_inter_container(record),
    )


def bridge_rules(record: NetworkRecord) -> BridgeRules:
    """Return how the firewall treats a network's bridge."""
    return BridgeRules(
        networks.bridge_name(record),
        masquerade=networks.is_true(record.options.get(OPTION_MASQUERADE, "true")),
        internal=record.internal,
        inter_container=networks.allows_inter_container(record),
        subnets=tuple(c.subnet for c in used_configs(record, record.ipam.config or ())),
    )


def _pools(settings: Settings, identity: str) -> dict[int, Sequence[Pool]]:
    """Return where subnets are chosen from, by family."""
    given = [Pool(ip_network(p.base), p.size) for p in settings.default_address_pools]
    own: dict[int, Sequence[Pool]] = {
        version: [pool for pool in given if pool.base.version == version] for version in VERSIONS
    }
    return {4: own[4] or DEFAULT_POOLS, 6: own[6] or [private_pool(identity)]}


def purge(data_root: str, bridge: str = "") -> None:
    """Remove what an engine with this data root left in the kernel: interfaces and table.

    For roots that are deleted while no engine runs on them; idempotent. Blocks.
    """
    names = EngineNames.for_data_root(data_root, bridge)
    with machine_lock(), netlink.RouteSocket() as route:
        nftables = Nftables()
        try:
            Firewall(names.table, nftables).remove()
            faults = FaultRules(names.table, nftables)
            if faults.present():  # not every kernel knows tables for bridges
                faults.remove()
        finally:
            nftables.close()
        remove_stale(route, Machine.read(route), names)
