"""The machine's memory: how it is used, who holds it, and how that was in the last hour."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from deskd.domain.state import Status
from deskd.errors import Conflict, SystemFailure
from deskd.kernel.machine_memory import read_machine_memory
from deskd.services.containers.registry import ContainerRegistry
from deskd.services.ports import Resources

SAMPLE_INTERVAL_S = 10.0
HISTORY_SAMPLES = 360  # an hour

# What a container holds and nothing but its end gives back: of cgroup v2, or of v1.
_HELD_V2 = ("anon", "shmem", "slab_unreclaimable", "kernel_stack", "pagetables", "percpu", "sock")
_HELD_V1 = ("total_rss", "total_shmem")


class MemoryUse:
    """Tells about the memory, and keeps the history from ``start`` to ``close``."""

    def __init__(self, registry: ContainerRegistry, resources: Resources) -> None:
        self._registry = registry
        self._resources = resources
        self._history: deque[dict[str, int]] = deque(maxlen=HISTORY_SAMPLES)
        self._sampling: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._sampling = asyncio.create_task(self._sample_for_ever())

    def close(self) -> None:
        if self._sampling is not None:
            self._sampling.cancel()

    async def usage(self) -> dict[str, Any]:
        """Return the body of ``GET /desk/memory``: bytes, and the largest container first."""
        now = read_machine_memory()
        containers = await asyncio.to_thread(self._containers, self._running())
        return {
            "Total": now.total,
            "Used": now.used,
            "Cache": now.cache,
            "Free": now.free,
            "Available": now.available,
            "PressurePercent": now.pressure_percent,
            "Containers": sorted(containers, key=lambda each: -each["Held"]),
            "History": list(self._history),
        }

    def _running(self) -> list[tuple[str, str]]:
        running = (Status.RUNNING, Status.PAUSED)
        records = [container.record for container in self._registry]
        return [(each.id, each.name) for each in records if each.state.status in running]

    def _containers(self, running: list[tuple[str, str]]) -> list[dict[str, Any]]:
        found = []
        for container_id, name in running:
            try:
                memory = self._resources.stats(container_id)["memory_stats"]
            except (FileNotFoundError, ProcessLookupError, Conflict, SystemFailure):
                continue  # it ended in this moment
            found.append(
                {
                    "Id": container_id,
                    "Name": name,
                    "Held": held_bytes(memory.get("stats", {})),
                    "Usage": memory.get("usage", 0),
                }
            )
        return found

    async def _sample_for_ever(self) -> None:
        while True:
            now = read_machine_memory()
            self._history.append(
                {"Time": int(time.time()), "Total": now.total, "Used": now.used, "Cache": now.cache}
            )
            await asyncio.sleep(SAMPLE_INTERVAL_S)


def held_bytes(stats: dict[str, int]) -> int:
    """Return what a container holds by ``memory_stats.stats`` of the API: no page cache."""
    names = _HELD_V2 if "anon" in stats else _HELD_V1
    return sum(stats.get(name, 0) for name in names)
