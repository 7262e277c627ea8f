"""Network faults as clients make them: their records, names, ends and events.

Containers and networks are named by clients and kept by ID. A fault ends when it is healed, when
its time is over, when its network is removed, or when nothing is left of the containers it names.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from deskd.domain.fault import (
    Fault,
    FaultRecord,
    FaultRecords,
    FaultRequest,
    check,
    without_container,
)
from deskd.domain.network import Network
from deskd.domain.times import rfc3339
from deskd.errors import Conflict, DeskdError, InvalidArgument, NotFound
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.events import Events

log = logging.getLogger(__name__)

_MS_NS = 1_000_000
_LONGEST_SLEEP_S = 30.0
"""Clocks are looked at this often: a machine may have slept meanwhile."""
_RETRY_S = 5.0


class FaultyNetworks(Protocol):
    """What the network part does for faults. ``add`` and ``replace`` do all or nothing."""

    def restore(self, records: Iterable[FaultRecord]) -> None: ...
    async def add(self, record: FaultRecord) -> None: ...
    async def replace(self, changed: Iterable[FaultRecord], ended: Iterable[str]) -> None: ...


class NetworkLookup(Protocol):
    """Finds networks; ``ready`` raises where networks of containers cannot be had."""

    async def ready(self) -> None: ...
    def known(self) -> list[Network]: ...
    async def inspect(self, reference: str) -> Network: ...
    def has_name_server(self, networks: Sequence[str]) -> bool: ...


class Faults:
    """The service. ``load`` it before containers are taken up, ``close`` it before networks."""

    def __init__(
        self,
        records: FaultRecords,
        kernel: FaultyNetworks,
        networks: NetworkLookup,
        registry: ContainerRegistry,
        events: Events,
    ) -> None:
        self._records = records
        self._kernel = kernel
        self._networks = networks
        self._registry = registry
        self._events = events
        self._by_name: dict[str, FaultRecord] = {}
        self._lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def load(self) -> None:
        """Take up what an earlier engine recorded, without what has ended meanwhile."""
        now_ns = time.time_ns()
        known = {network.id for network in self._networks.known()}
        for record in self._records.all():
            left: FaultRecord | None = record
            for container_id in record.containers:
                if left is not None and self._registry.find(container_id) is None:
                    left = without_container(left, container_id)
            if left is None or left.network_id not in known or 0 < left.ends_ns <= now_ns:
                self._records.delete(record.name)
                continue
            if left is not record:
                self._records.put(left)
            self._by_name[left.name] = left
        self._kernel.restore(self._by_name.values())
        self._registry.on_removal(self._container_removed)
        self._keeper = asyncio.create_task(self._keep_time())

    async def close(self) -> None:
        """Stop keeping time; faults stay."""
        if self._keeper is not None:
            self._keeper.cancel()
        await asyncio.gather(
            *([self._keeper] if self._keeper else []), *self._tasks, return_exceptions=True
        )

    # --- what clients do ------------------------------------------------------------------------

    async def add(self, request: FaultRequest) -> Fault:
        """Let a fault hold. Raises ``InvalidArgument``, ``NotFound``, ``Conflict`` for a name
        that is taken and ``Unsupported`` for what the kernel lacks."""
        request = check(request)
        await self._networks.ready()
        async with self._lock:
            record, network = await self._record(request)
            await self._kernel.add(record)
            try:
                self._records.insert(record)
            except BaseException:
                await self._kernel.replace((), [record.name])
                raise
            self._by_name[record.name] = record
        self._wake.set()
        self._tell("fault", record, network)
        return self._shown(record, network)

    async def select(self, network: str = "") -> list[Fault]:
        """Return all faults, or those of one network, oldest first."""
        wanted = (await self._networks.inspect(network)).id if network else ""
        networks = {item.id: item for item in self._networks.known()}
        return [
            self._shown(record, networks[record.network_id])
            for record in self._by_name.values()
            if record.network_id in networks and wanted in ("", record.network_id)
        ]

    async def inspect(self, name: str) -> Fault:
        """Return one fault. Raises ``NotFound``."""
        record = self._found(name)
        return self._shown(record, await self._networks.inspect(record.network_id))

    async def heal(self, name: str) -> None:
        """End a fault. Raises ``NotFound``."""
        async with self._lock:
            await self._end([self._found(name)], "healed")

    async def heal_all(self, network: str = "") -> list[str]:
        """End all faults, or those of one network; return their names."""
        wanted = (await self._networks.inspect(network)).id if network else ""
        async with self._lock:
            ended = [
                record for record in self._by_name.values() if wanted in ("", record.network_id)
            ]
            await self._end(ended, "healed")
        return [record.name for record in ended]

    def _found(self, name: str) -> FaultRecord:
        record = self._by_name.get(name)
        if record is None:
            raise NotFound(
                f"no network fault {name}: `desk network fault ls` lists those there are"
            )
        return record

    # --- requests to records --------------------------------------------------------------------

    async def _record(self, request: FaultRequest) -> tuple[FaultRecord, Network]:
        partition = [self._ids(group) for group in request.partition or ()]
        between, from_, to = (
            self._ids(group or ()) for group in (request.between, request.from_, request.to)
        )
        named = [*(item for group in partition for item in group), *between]
        _check_once(named, self._registry)
        if len(between) == 1 or (from_ == to and len(to) == 1):
            name = self._names([*between, *to])[0]
            raise InvalidArgument(f"there is no link from {name} to itself: name two containers")
        containers = [self._registry.get(item) for item in dict.fromkeys([*named, *from_, *to])]
        network = await self._network(request.network, containers)
        if request.dns is not None and not self._networks.has_name_server([network.id]):
            raise InvalidArgument(
                f"containers in the network {network.name} ask the machine's name servers, not "
                "the engine: DNS faults need a network of your own (`docker network create`)"
            )
        now_ns = time.time_ns()
        record = FaultRecord(
            name=request.name or self._free_name(request),
            network_id=network.id,
            created_ns=now_ns,
            ends_ns=now_ns + request.duration_ms * _MS_NS if request.duration_ms else 0,
            partition=partition,
            between=between,
            from_=from_,
            to=to,
            block=request.block,
            link=request.link,
            dns=request.dns,
        )
        if record.name in self._by_name:
            raise Conflict(f"a network fault {record.name} exists already: choose another name")
        return record, network

    def _ids(self, references: Iterable[str]) -> list[str]:
        found = []
        for reference in references:
            container = self._registry.get(reference)
            mode = container.record.host_config.network_mode
            if mode.startswith("container:"):
                owner = self._registry.get(mode.partition(":")[2])
                raise InvalidArgument(
                    f"container {container.name} shares the network of {owner.name}: name that one"
                )
            found.append(container.id)
        return list(dict.fromkeys(found))

    def _free_name(self, request: FaultRequest) -> str:
        kind = "partition" if request.partition else "block" if request.block else "link"
        if request.dns is not None:
            kind = "dns"
        number = 1
        while f"{kind}{number}" in self._by_name:
            number += 1
        return f"{kind}{number}"

    async def _network(self, reference: str, containers: Sequence[Container]) -> Network:
        """Return the network that is meant: the named one, else the only one that all the named
        containers are in."""
        if not reference:
            return self._common_network(containers)
        network = await self._networks.inspect(reference)
        if network.driver != "bridge":
            raise InvalidArgument(
                f"network {network.name} cannot have faults, because its {network.driver} traffic "
                "does not pass through the engine's bridges: use a bridge network"
            )
        for container in containers:
            if not _is_in(container, network):
                raise InvalidArgument(
                    f"container {container.name} is not in the network {network.name}: connect it "
                    "first"
                )
        return network

    def _common_network(self, containers: Sequence[Container]) -> Network:
        if not containers:
            raise InvalidArgument("name a network, or containers of one, for a fault")
        common = [
            network
            for network in self._networks.known()
            if network.driver == "bridge" and all(_is_in(item, network) for item in containers)
        ]
        names = ", ".join(container.name for container in containers)
        if not common:
            raise InvalidArgument(f"{names} are not in one bridge network: connect them first")
        if len(common) > 1:
            networks = ", ".join(network.name for network in common)
            raise InvalidArgument(f"{names} are in the networks {networks}: name one of them")
        return common[0]

    # --- ends -----------------------------------------------------------------------------------

    async def _end(self, ended: Sequence[FaultRecord], reason: str) -> None:
        """End faults; with the lock held."""
        if not ended:
            return
        await self._kernel.replace((), [record.name for record in ended])
        networks = {network.id: network for network in self._networks.known()}
        for record in ended:
            self._records.delete(record.name)
            self._by_name.pop(record.name, None)
            self._tell("heal", record, networks.get(record.network_id), reason)

    def _container_removed(self, container: Container) -> None:
        if any(container.id in record.containers for record in self._by_name.values()):
            self._in_background(self._forget_container(container.id))

    async def _forget_container(self, container_id: str) -> None:
        async with self._lock:
            changed, ended = [], []
            for record in self._by_name.values():
                left = without_container(record, container_id)
                if left is None:
                    ended.append(record)
                elif left is not record:
                    changed.append(left)
            if changed:
                await self._kernel.replace(changed, ())
            for record in changed:
                self._records.put(record)
                self._by_name[record.name] = record
            await self._end(ended, "its containers are gone")

    async def network_removed(self, network: Network) -> None:
        """End the faults of a network that is gone."""
        async with self._lock:
            ended = [r for r in self._by_name.values() if r.network_id == network.id]
            if ended:
                await self._kernel.replace((), [record.name for record in ended])
            for record in ended:
                self._records.delete(record.name)
                self._by_name.pop(record.name, None)
                self._tell("heal", record, network, "its network is gone")

    async def _keep_time(self) -> None:
        while True:
            self._wake.clear()
            now_ns = time.time_ns()
            async with self._lock:
                over = [r for r in self._by_name.values() if 0 < r.ends_ns <= now_ns]
                pause_s = _LONGEST_SLEEP_S
                try:
                    await self._end(over, "its time is over")
                except (DeskdError, OSError) as error:
                    log.warning("a network fault whose time is over cannot be healed: %s", error)
                    pause_s = _RETRY_S
            for record in self._by_name.values():
                if record.ends_ns > now_ns:
                    pause_s = min(pause_s, (record.ends_ns - time.time_ns()) / 1e9)
            try:
                async with asyncio.timeout(max(pause_s, 0.0)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _in_background(self, work: Any) -> None:
        async def run() -> None:
            try:
                await work
            except (DeskdError, OSError) as error:
                log.warning("the network faults of a removed container stay: %s", error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what is shown --------------------------------------------------------------------------

    def _shown(self, record: FaultRecord, network: Network) -> Fault:
        remaining_ms = 0
        if record.ends_ns:
            remaining_ms = max((record.ends_ns - time.time_ns()) // _MS_NS, 1)
        return Fault(
            name=record.name,
            kind=record.kind,
            network=network.name,
            network_id=network.id,
            created=rfc3339(record.created_ns),
            ends=rfc3339(record.ends_ns),
            remaining_ms=remaining_ms,
            partition=[self._names(group) for group in record.partition],
            between=self._names(record.between),
            from_=self._names(record.from_),
            to=self._names(record.to),
            block=record.block,
            link=record.link,
            dns=record.dns,
        )

    def _names(self, ids: Iterable[str]) -> list[str]:
        found = ((item, self._registry.find(item)) for item in ids)
        return [container.name if container else item[:12] for item, container in found]

    def _tell(
        self, action: str, record: FaultRecord, network: Network | None, reason: str = ""
    ) -> None:
        attributes = {
            "fault": record.name,
            "kind": record.kind,
            "name": network.name if network else "",
            "type": network.driver if network else "bridge",
        }
        if reason:
            attributes["reason"] = reason
        self._events.publish("network", action, record.network_id, attributes)


def _is_in(container: Container, network: Network) -> bool:
    joined = container.record.networks
    return (
        network.name in joined or network.id in joined or network.name in container.record.endpoints
    )


def _check_once(ids: Sequence[str], registry: ContainerRegistry) -> None:
    for container_id in ids:
        if ids.count(container_id) > 1:
            raise InvalidArgument(
                f"container {registry.get(container_id).name} is in two groups: it can be in one"
            )
