"""The machine's memory: how it is used, who holds it, and how that was in the last hour."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import Any

from deskd.domain.memory_peak import MemoryPeak
from deskd.domain.state import ContainerRecord
from deskd.errors import Conflict, DeskdError, NotFound, SystemFailure
from deskd.kernel.machine_memory import read_machine_memory
from deskd.services.containers.memory_peaks import MemoryPeaks
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.ports import MemoryReading, Resources

log = logging.getLogger(__name__)

SAMPLE_INTERVAL_S = 10.0
HISTORY_SAMPLES = 360  # an hour


class MemoryUse:
    """Tells about the memory; keeps the history, and the peaks of containers up to date, from
    ``start`` to ``close``."""

    def __init__(
        self, registry: ContainerRegistry, resources: Resources, peaks: MemoryPeaks
    ) -> None:
        self._registry = registry
        self._resources = resources
        self._peaks = peaks
        self._history: deque[dict[str, int]] = deque(maxlen=HISTORY_SAMPLES)
        self._sampling: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._sampling = asyncio.create_task(self._sample_for_ever())

    def close(self) -> None:
        if self._sampling is not None:
            self._sampling.cancel()

    async def usage(self) -> dict[str, Any]:
        """Return the body of ``GET /desk/memory``: bytes, and the largest containers first."""
        now = read_machine_memory()
        found = await self._look()
        running = [
            {
                **_observed(container.record, self._peaks.of(container)),
                "Held": reading.held,
                "Usage": reading.usage,
            }
            for container, reading in found
        ]
        return {
            "Total": now.total,
            "Used": now.used,
            "Cache": now.cache,
            "Free": now.free,
            "Available": now.available,
            "PressurePercent": now.pressure_percent,
            "Containers": sorted(running, key=lambda each: -each["Held"]),
            "Ended": sorted(self._ended(), key=lambda each: -each["Peak"]),
            "History": list(self._history),
        }

    def _ended(self) -> list[dict[str, Any]]:
        """Describe the containers that ran once and do not run, removed ones too."""
        here = [
            _observed(container.record, self._peaks.of(container))
            for container in self._registry
            if not container.record.state.running and container.record.state.started_at_ns
        ]
        return here + [
            {
                "Id": "",
                "Name": past.name,
                "Image": past.image,
                "Limit": 0,
                "StartedNano": past.started_at_ns,
                "FinishedNano": past.finished_at_ns,
                **_peak(past.peak, 0),
            }
            for past in self._peaks.past()
        ]

    async def _look(self) -> list[tuple[Container, MemoryReading]]:
        """Look at every running container, and take note of its peak."""
        running = [each for each in self._registry if each.record.state.running]
        if not running:
            return []
        found = await asyncio.to_thread(self._readings, [each.id for each in running])
        for container_id, reading in found.items():
            self._peaks.seen(container_id, reading)
        return [(each, found[each.id]) for each in running if each.id in found]

    def _readings(self, running: list[str]) -> dict[str, MemoryReading]:
        found = {}
        for container_id in running:
            # What is missing has ended in this moment.
            with suppress(FileNotFoundError, ProcessLookupError, Conflict, NotFound, SystemFailure):
                found[container_id] = self._resources.memory_reading(container_id)
        return found

    async def _sample_for_ever(self) -> None:
        while True:
            now = read_machine_memory()
            self._history.append(
                {"Time": int(time.time()), "Total": now.total, "Used": now.used, "Cache": now.cache}
            )
            try:
                await self._look()
            except (OSError, DeskdError):
                log.exception("the memory of containers cannot be observed now")
            await asyncio.sleep(SAMPLE_INTERVAL_S)


def _observed(record: ContainerRecord, peak: MemoryPeak) -> dict[str, Any]:
    """Describe a container's memory over time."""
    state = record.state
    ran_ns = time.time_ns() - state.started_at_ns if state.running else 0
    return {
        "Id": record.id,
        "Name": record.name,
        "Image": record.image_name,
        "Limit": max(record.host_config.memory, 0),
        "StartedNano": state.started_at_ns,
        "FinishedNano": 0 if state.running else state.finished_at_ns,
        **_peak(peak, ran_ns),
    }


def _peak(peak: MemoryPeak, ran_ns: int) -> dict[str, int]:
    return {
        "Peak": peak.held_bytes,
        "PeakUsage": peak.usage_bytes,
        "ObservedSeconds": (peak.observed_ns + max(ran_ns, 0)) // 1_000_000_000,
        "Runs": peak.runs + (ran_ns > 0),
    }
