"""The power policy: less work in containers while the laptop runs on its battery.

The laptop's agent tells the power, and on battery goes on telling. Then all containers together
have no more CPU time than the agent says, and those with the label ``desk.power=pause-on-battery``
are frozen. The first report of another power undoes it all; so does the engine by itself when no
report has come for ``LEASE_S``: an agent that is gone leaves nobody frozen.

Which container the policy froze is in its record, so it ends no pause of anybody else. Who starts
or unpauses a container by hand wants it to run: it is left alone until the next change to battery.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from deskd.domain.container import ApiStruct
from deskd.domain.filters import Filters
from deskd.domain.state import Status
from deskd.errors import Conflict, DeskdError, InvalidArgument, NotFound
from deskd.services.containers.lifecycle import Lifecycle
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.events import Events
from deskd.services.ports import ContainersCpu
from deskd.store.database import Database

log = logging.getLogger(__name__)

LEASE_S = 90.0
LABEL, PAUSE_ON_BATTERY = "desk.power", "pause-on-battery"
LEAST_NANO_CPUS = 10_000_000
"""The kernel takes no less than a millisecond in each of its periods of 100 ms."""

_KEY = "power-source"
_STARTS = Filters({"type": ["container"], "event": ["start"]})


class Source(StrEnum):
    """What the laptop runs on."""

    MAINS = "mains"
    BATTERY = "battery"
    UNKNOWN = "unknown"


class PowerReport(ApiStruct, frozen=True):
    """Body of ``POST /desk/power``. ``nano_cpus``: what all containers together may use on battery,
    in billionths of a CPU; 0 is no limit."""

    source: str = ""
    nano_cpus: int = 0


class PowerPolicy:
    """Carries the policy out from ``start`` to ``close``."""

    def __init__(
        self,
        registry: ContainerRegistry,
        lifecycle: Lifecycle,
        cpu: ContainersCpu,
        events: Events,
        database: Database,
    ) -> None:
        self._registry = registry
        self._lifecycle = lifecycle
        self._cpu = cpu
        self._events = events
        self._database = database
        self._source = Source.UNKNOWN
        self._nano_cpus = 0
        self._problem = ""
        self._busy = asyncio.Lock()
        self._lease: asyncio.TimerHandle | None = None
        self._lease_ends = 0.0  # by the event loop's clock
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Leave in force what an earlier engine did, until the agent tells or is long silent."""
        self._begin(self._watch_starts())
        if any(self._held()) or await self._capped():
            self._renew_lease()

    async def close(self) -> None:
        """Do nothing more; what is in force stays for the next engine."""
        self._end_lease()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- asked and told ---------------------------------------------------------------------------

    async def state(self) -> dict[str, Any]:
        """Return the body of ``GET /desk/power``."""
        on_battery = self._source is Source.BATTERY
        spared = [c for c in self._labelled() if on_battery and c.record.state.runs_on_battery]
        return {
            "Source": self._source,
            "NanoCpus": await self._capped(),
            "Label": f"{LABEL}={PAUSE_ON_BATTERY}",
            "Frozen": [_name(container) for container in self._held()],
            "Spared": [_name(c) for c in spared if c.record.state.status is Status.RUNNING],
            "Problem": self._problem,
        }

    async def tell(self, report: PowerReport) -> dict[str, Any]:
        """Follow the laptop's power; return what is in force then. Raises ``InvalidArgument``."""
        try:
            source = Source(report.source)
        except ValueError:
            known = ", ".join(Source)
            raise InvalidArgument(f"Source is {report.source!r}; it can be {known}") from None
        if report.nano_cpus and report.nano_cpus < LEAST_NANO_CPUS:
            raise InvalidArgument(
                f"NanoCpus is {report.nano_cpus}; it can be 0 or at least {LEAST_NANO_CPUS}"
            )
        async with self._busy:
            self._note_change(source)
            await self._follow(source, report.nano_cpus)
            self._end_lease()
            if source is Source.BATTERY:
                self._renew_lease()
        return await self.state()

    def _note_change(self, source: Source) -> None:
        """Remember the power that was told last; a change to battery makes all containers equal."""
        before = self._database.get_meta(_KEY)
        if source is Source.UNKNOWN or source == before:
            return
        if source is Source.BATTERY:
            for container in self._registry:
                if container.record.state.runs_on_battery:
                    container.record.state.runs_on_battery = False
                    self._registry.save(container)
        self._database.set_meta(_KEY, source)

    # --- carrying out -----------------------------------------------------------------------------

    async def _follow(self, source: Source, nano_cpus: int) -> None:
        """Bring limit and containers to where they belong, and tell of a change."""
        on_battery, was = source is Source.BATTERY, self._source is Source.BATTERY
        wanted = nano_cpus if on_battery else 0
        changed = (on_battery, wanted) != (was, self._nano_cpus)
        self._source, self._nano_cpus = source, wanted
        problems = []
        try:
            if wanted != await self._capped():
                await asyncio.to_thread(self._cpu.cap, wanted)
        except (DeskdError, OSError) as error:
            problems.append(f"the CPU time of containers cannot be limited: {error}")
        problems += await self._settle()
        if problems and "; ".join(problems) != self._problem:
            log.warning("the power policy: %s", "; ".join(problems))
        self._problem = "; ".join(problems)
        if changed:
            cpus = f"{wanted / 1e9:g}" if wanted else ""
            names = ",".join(container.name for container in self._held())
            log.info("power: %s; CPUs: %s; frozen: %s", source, cpus or "all", names or "none")
            about = {"name": "deskd", "source": str(source), "cpus": cpus, "frozen": names}
            self._events.publish("daemon", "power", "deskd", about)

    async def _settle(self) -> list[str]:
        """Freeze or thaw who is not as the policy has it; return what went wrong."""
        problems = []
        on_battery = self._source is Source.BATTERY
        for container in self._labelled() if on_battery else self._held():
            state = container.record.state
            try:
                if not on_battery:
                    await self._lifecycle.unpause(container.id, by_hand=False)
                elif (
                    state.status is Status.RUNNING
                    and not state.runs_on_battery
                    and not container.stops_under_way
                ):
                    await self._lifecycle.pause(container.id, for_power=True)
            except (Conflict, NotFound):  # somebody ended, unpaused or removed it in this moment
                continue
            except (DeskdError, OSError) as error:
                problems.append(f"container {container.name}: {error}")
        return problems

    async def _watch_starts(self) -> None:
        """Freeze what comes back by itself on battery: by a restart policy, or with the machine."""
        while True:
            async for _event in self._events.subscribe(filters=_STARTS, internal=True):
                async with self._busy:
                    if self._source is Source.BATTERY:
                        await self._settle()

    async def _expire(self) -> None:
        async with self._busy:
            if asyncio.get_running_loop().time() < self._lease_ends:
                return  # a report came in this moment
            log.info("no agent has told of the power for %.0f s", LEASE_S)
            await self._follow(Source.UNKNOWN, 0)

    def _renew_lease(self) -> None:
        loop = asyncio.get_running_loop()
        self._lease_ends = loop.time() + LEASE_S
        self._lease = loop.call_at(self._lease_ends, lambda: self._begin(self._expire()))

    def _end_lease(self) -> None:
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None

    def _begin(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _capped(self) -> int:
        return await asyncio.to_thread(self._cpu.capped)

    def _labelled(self) -> Iterator[Container]:
        return (c for c in self._registry if c.record.labels.get(LABEL) == PAUSE_ON_BATTERY)

    def _held(self) -> Iterator[Container]:
        return (c for c in self._registry if c.record.state.held_by_power)


def _name(container: Container) -> dict[str, str]:
    return {"Id": container.id, "Name": container.name}
