"""Network faults of one engine: which hold, whom they concern, and that the kernel does them.

The services keep the records and tell when one begins or ends; the networks tell who joins and
leaves. Everything here runs on the event loop; the kernel is changed in threads, one change at a
time and each to its end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from deskd.domain.fault import DnsFault, FaultRecord
from deskd.domain.network import Endpoint, NetlinkScript
from deskd.errors import DeskdError
from deskd.kernel import netlink
from deskd.kernel.nftables import Nftables
from deskd.network.bridge import host_interface
from deskd.network.fault_links import Member, effects
from deskd.network.fault_names import concerns, is_question, question_name
from deskd.network.fault_state import FaultState, check_kernel
from deskd.record import replace

log = logging.getLogger(__name__)

_ARRIVAL_S = 10.0
_ARRIVAL_POLL_S = 0.02


class NetworkFaults:
    """The faults, the members of networks, and the kernel's state."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._faults: dict[str, FaultRecord] = {}
        self._members: dict[tuple[str, str], Member] = {}
        self._coming: dict[str, int] = {}  # index by interface
        self._dns: dict[str, list[DnsFault]] = {}
        self._nftables: Nftables | None = None
        self._state: FaultState | None = None
        self._change = asyncio.Lock()
        self._closing = False
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- set-up and end -------------------------------------------------------------------------

    def restore(self, records: Iterable[FaultRecord]) -> None:
        """Tell which faults hold at the engine's start, before ``begin``."""
        self._faults = {record.name: record for record in records}
        self._settle_names()

    async def begin(self) -> None:
        """Bring the kernel, which an earlier engine may have left in any state, to what holds."""
        await self._to_its_end(self._begin)

    async def _begin(self) -> None:
        if self._state is None:
            self._nftables = Nftables()
            self._state = FaultState(self._table, self._nftables)
        indices = [member.index for member in self._members.values()]
        await asyncio.to_thread(self._state.take_up, indices)
        try:
            await self._apply()
        except (DeskdError, OSError) as error:
            # The containers' networks are worth more than what is to go wrong with them.
            log.warning("the network faults of an earlier engine do not hold: %s", error)

    async def close(self) -> None:
        """End with the engine; what concerns running containers stays in the kernel."""
        self._closing = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with self._change:
            self._state = None
            if self._nftables is not None:
                self._nftables.close()
                self._nftables = None

    # --- faults ---------------------------------------------------------------------------------

    async def add(self, record: FaultRecord) -> None:
        """Let a fault hold; on an error it does not, and nothing has changed."""
        if record.link is not None:
            await asyncio.to_thread(check_kernel, record.link)

        async def change() -> None:
            self._faults[record.name] = record
            try:
                await self._apply()
            except BaseException:
                del self._faults[record.name]
                raise

        await self._to_its_end(change)
        self._settle_names()
        await self._completed()

    async def replace(self, changed: Iterable[FaultRecord], ended: Iterable[str]) -> None:
        """Change faults or let them end, all at once; on an error all are as they were."""

        async def change() -> None:
            before = dict(self._faults)
            for name in ended:
                self._faults.pop(name, None)
            self._faults.update({record.name: record for record in changed})
            try:
                await self._apply()
            except BaseException:
                self._faults = before
                raise

        await self._to_its_end(change)
        self._settle_names()

    # --- members --------------------------------------------------------------------------------

    def add_present(self, container_id: str, endpoint: Endpoint) -> None:
        """Take note of a member that is there since an earlier engine; before ``begin``."""
        self._members[container_id, endpoint.network_id] = _member(container_id, endpoint)
        self._settle_names()

    async def join(self, container_id: str, endpoint: Endpoint) -> Endpoint:
        """Take note of a new member; return its endpoint with the requests in its script that
        give its interface what faults want, so that it is never without. Raises where the kernel
        refuses; ``leave`` must follow then."""
        key = container_id, endpoint.network_id
        member = _member(container_id, endpoint)
        if not self._has_links(endpoint.network_id):
            self._members[key] = member
            self._coming[member.interface] = member.index
            self._settle_names()
            return endpoint

        async def change() -> tuple[bytes, ...]:
            self._members[key] = member
            try:
                return await self._apply(coming=member.interface)
            finally:
                self._coming[member.interface] = member.index

        requests = await self._to_its_end(change)
        self._settle_names()
        if self._state is not None and self._state.incomplete:
            self._in_background(self._completed())
        script = endpoint.script
        return replace(
            endpoint,
            script=NetlinkScript(
                (*script.outside, *requests),
                (*script.outside_pid_offsets, *(None for _ in requests)),
                script.inside,
            ),
        )

    async def leave(self, container_id: str, network_id: str) -> None:
        """Take note that a member has gone; idempotent. Never fails: a rule that is left names an
        interface that will not come again, and goes with the next change."""
        member = self._members.pop((container_id, network_id), None)
        if member is None:
            return
        self._coming.pop(member.interface, None)
        self._settle_names()
        if self._has_links(network_id):
            try:
                await self._to_its_end(self._apply)
            except (DeskdError, OSError) as error:
                log.warning("the network faults of a container that ended stay: %s", error)

    def _has_links(self, network_id: str) -> bool:
        return any(
            fault.network_id == network_id and fault.dns is None for fault in self._faults.values()
        )

    # --- names ----------------------------------------------------------------------------------

    def dns_fault(self, container_id: str, packet: bytes) -> DnsFault | None:
        """Return the fault that a container's question meets, if any."""
        found = self._dns.get(container_id)
        if not found or not is_question(packet):
            return None
        name = question_name(packet)
        return next((fault for fault in found if concerns(fault, name)), None)

    def _settle_names(self) -> None:
        self._dns = {}
        for fault in self._faults.values():
            if fault.dns is None:
                continue
            for container_id, network_id in self._members:
                if network_id == fault.network_id and (
                    not fault.from_ or container_id in fault.from_
                ):
                    self._dns.setdefault(container_id, []).append(fault.dns)

    # --- the kernel -----------------------------------------------------------------------------

    async def _apply(self, *, coming: str = "") -> tuple[bytes, ...]:
        """Compute and do; with the lock held."""
        by_network: dict[str, list[Member]] = {}
        for (_, network_id), member in self._members.items():
            by_network.setdefault(network_id, []).append(member)
        wanted = effects(self._faults.values(), by_network)
        if self._state is None:
            return ()  # ``begin`` does it
        await asyncio.to_thread(self._note_arrivals)
        return await asyncio.to_thread(
            partial(
                self._state.apply,
                wanted,
                {member.interface: member.index for member in self._members.values()},
                coming=coming,
                awaited=frozenset(self._coming),
            )
        )

    def _note_arrivals(self) -> None:
        if not self._coming:
            return
        with netlink.RouteSocket() as route:
            for interface, index in list(self._coming.items()):
                if route.is_connected(index):
                    self._coming.pop(interface, None)

    async def _completed(self) -> None:
        """Wait until interfaces that were in the making at a change have got what they need."""
        deadline = asyncio.get_running_loop().time() + _ARRIVAL_S
        while self._state is not None and self._state.incomplete and not self._closing:
            if asyncio.get_running_loop().time() > deadline:
                log.warning(
                    "the interfaces %s are not up: network faults do not reach them",
                    ", ".join(sorted(self._state.incomplete)),
                )
                return
            await self._to_its_end(self._complete)
            if self._state is not None and self._state.incomplete:
                await asyncio.sleep(_ARRIVAL_POLL_S)

    async def _complete(self) -> None:
        if self._state is None:
            return
        await asyncio.to_thread(self._note_arrivals)
        indices = {member.interface: member.index for member in self._members.values()}
        self._state.incomplete &= set(indices)
        arrived = self._state.incomplete - set(self._coming)
        for interface in arrived:
            await asyncio.to_thread(self._state.complete, interface, indices[interface])
        if arrived:
            await self._apply()

    async def _to_its_end(self, work: Callable[[], Any]) -> Any:
        """Do one change at a time, to its end also where the caller is cancelled."""

        async def run() -> Any:
            async with self._change:
                return await work()

        return await asyncio.shield(self._in_background(run()))

    def _in_background(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _member(container_id: str, endpoint: Endpoint) -> Member:
    interface, index = host_interface(endpoint.endpoint_id)
    settings = endpoint.settings
    addresses = (settings.ip_address, settings.global_ipv6_address)
    return Member(container_id, interface, index, tuple(item for item in addresses if item))
