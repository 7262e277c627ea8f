"""Looking into a running container: ``top`` and ``stats``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from deskd.domain.state import ContainerRecord, Status
from deskd.domain.times import NEVER, rfc3339
from deskd.errors import Conflict, SystemFailure
from deskd.services.containers.process_table import process_table
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.ports import Resources

STATS_INTERVAL_S = 1.0
_COUNTERS = (
    "rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "tx_bytes", "tx_packets", "tx_errors",
    "tx_dropped",
)  # fmt: skip
_COLUMNS = (0, 1, 2, 3, 8, 9, 10, 11)  # of /proc/net/dev, in the order of _COUNTERS


class Observing:
    """Measures containers."""

    def __init__(self, registry: ContainerRegistry, resources: Resources) -> None:
        self._registry = registry
        self._resources = resources

    async def top(self, reference: str, ps_arguments: str = "") -> dict[str, Any]:
        """Return ``ContainerTopResponse``: titles and one row for each process.

        Raises ``Conflict`` where it does not run, ``InvalidArgument`` for unknown ps arguments.
        """
        container = self._registry.get(reference)
        if not container.record.state.running:
            raise Conflict(f"container {container.id} is not running")
        pids = self._resources.pids(container.id)
        result = await asyncio.to_thread(process_table, pids, ps_arguments)
        self._registry.tell(container, "top")
        return result

    async def stats(
        self, reference: str, *, stream: bool, one_shot: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """Return measurements, one a second with ``stream``; ``one_shot`` does not wait for a
        second one to compare with. Raises ``NotFound`` at once."""
        container = self._registry.get(reference)
        return self._measure(container, stream=stream, one_shot=one_shot)

    async def _measure(
        self, container: Container, *, stream: bool, one_shot: bool
    ) -> AsyncIterator[dict[str, Any]]:
        before: dict[str, Any] | None = None
        if container.process is not None and not one_shot:
            before = await self._sample(container)
            if stream:
                yield _with_previous(before, None)
            await asyncio.sleep(STATS_INTERVAL_S)
        while True:
            now = await self._sample(container)
            yield _with_previous(now, before)
            if not stream:
                return
            before = now
            if self._registry.find(container.id) is None:
                return
            await asyncio.sleep(STATS_INTERVAL_S)

    async def _sample(self, container: Container) -> dict[str, Any]:
        record = container.record
        sample: dict[str, Any] = {
            "name": f"/{record.name}",
            "id": record.id,
            "read": rfc3339(time.time_ns()),
            "preread": NEVER,
            "num_procs": 0,
            "storage_stats": {},
            "cpu_stats": _NO_CPU,
            "memory_stats": {},
            "blkio_stats": _NO_BLKIO,
            "pids_stats": {},
        }
        if record.state.status in (Status.RUNNING, Status.PAUSED):
            try:
                sample.update(await asyncio.to_thread(self._read, record))
            except (FileNotFoundError, ProcessLookupError, Conflict, SystemFailure):
                return sample  # it ended in this moment
        return sample

    def _read(self, record: ContainerRecord) -> dict[str, Any]:
        figures = dict(self._resources.stats(record.id))
        if record.host_config.network_mode != "host":
            figures["networks"] = interface_counters(record.state.pid)
        return figures


_NO_CPU = {
    "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
    "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
}
_NO_BLKIO = dict.fromkeys(
    (
        "io_service_bytes_recursive",
        "io_serviced_recursive",
        "io_queue_recursive",
        "io_service_time_recursive",
        "io_wait_time_recursive",
        "io_merged_recursive",
        "io_time_recursive",
        "sectors_recursive",
    )
)


def _with_previous(now: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    if before is None:
        return {**now, "precpu_stats": _NO_CPU}
    return {**now, "preread": before["read"], "precpu_stats": before["cpu_stats"]}


def interface_counters(pid: int) -> dict[str, dict[str, int]]:
    """Return the counters of each interface that the process sees, but loopback."""
    counters: dict[str, dict[str, int]] = {}
    with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
        for line in file.readlines()[2:]:
            name, _, rest = line.partition(":")
            values = rest.split()
            if name.strip() != "lo":
                counters[name.strip()] = {
                    title: int(values[column])
                    for title, column in zip(_COUNTERS, _COLUMNS, strict=True)
                }
    return counters
