"""Telling that a container has run out of memory in the moment when it does, and why.

The kernel may have killed a child only; the container then runs on with ``OOMKilled`` set. A kill
has one of two reasons: the container came to its own limit, or the machine's memory was used up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from deskd.domain.sizes import binary_size
from deskd.domain.state import MemoryUse, OutOfMemory
from deskd.errors import DeskdError
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.ports import MemoryWatch, Resources

log = logging.getLogger(__name__)

_MOST_OTHERS = 3


class MemoryWatching:
    """Watches running containers; knows why those that ran out of memory did.

    ``machine_bytes`` is the machine's memory.
    """

    def __init__(
        self, registry: ContainerRegistry, resources: Resources, machine_bytes: int
    ) -> None:
        self._registry = registry
        self._resources = resources
        self._machine_bytes = machine_bytes
        self._watches: dict[str, MemoryWatch] = {}

    def begin(self, container: Container) -> None:
        """Watch a running container.

        One without a limit is watched where the kernel tells of it that the machine's memory was
        used up, which cgroup v1 does not.
        """
        self.end(container)
        limited = bool(container.record.host_config.memory)
        if not limited and not self._resources.tells_of_machine_memory:
            return
        try:
            watch = self._resources.watch_memory(container.id)
        except (OSError, DeskdError) as error:
            # It has ended in this moment, or the kernel cannot tell: the end will.
            log.debug("the memory of %s is not watched: %s", container.record.short_id, error)
            return
        self._watches[container.id] = watch
        asyncio.get_running_loop().add_reader(watch.fileno(), self._told, container, watch)

    def _told(self, container: Container, watch: MemoryWatch) -> None:
        if watch.happened() and container.record.state.running:
            container.record.state.oom_killed = True
            self.note(container, own_limit=self._resources.came_to_memory_limit(container.id))
            self._registry.save(container)
            self.tell(container)

    def note(self, container: Container, *, own_limit: bool) -> None:
        """Write down why the container ran out of memory, with who held the rest."""
        held = [
            MemoryUse(other.record.name, self._resources.memory_bytes(other.id))
            for other in self._registry
            if other is not container and other.record.state.running
        ]
        held.sort(key=lambda use: -use.bytes)
        limit = container.record.host_config.memory if own_limit else 0
        container.record.state.out_of_memory = OutOfMemory(
            time_ns=time.time_ns(),
            own_limit=bool(limit),
            limit_bytes=limit or self._machine_bytes,
            others=tuple(use for use in held[:_MOST_OTHERS] if use.bytes),
        )

    def tell(self, container: Container) -> None:
        """Publish the event; beside what Docker's has, it says which limit it was, and why."""
        found = container.record.state.out_of_memory
        attributes = {}
        if found is not None:
            attributes = {
                "limit": "container" if found.own_limit else "machine",
                "limitBytes": str(found.limit_bytes),
                "reason": reason(container.record.name, found),
                "remedy": remedy(container.record.name, found),
            }
        self._registry.tell(container, "oom", attributes)

    def number_of_kills(self) -> int:
        """Return how many containers ran out of memory in their last run."""
        return sum(container.record.state.out_of_memory is not None for container in self._registry)

    def kills(self) -> list[dict[str, Any]]:
        """Return the containers that ran out of memory in their last run, the latest first."""
        found = [
            (container.record, container.record.state.out_of_memory) for container in self._registry
        ]
        kills = [(record, kill) for record, kill in found if kill is not None]
        kills.sort(key=lambda pair: -pair[1].time_ns)
        return [
            {
                "Id": record.id,
                "Name": record.name,
                "Running": record.state.running,
                "TimeNano": kill.time_ns,
                "Limit": "container" if kill.own_limit else "machine",
                "LimitBytes": kill.limit_bytes,
                "Others": [{"Name": use.name, "Bytes": use.bytes} for use in kill.others],
                "Reason": reason(record.name, kill),
                "Remedy": remedy(record.name, kill),
            }
            for record, kill in kills
        ]

    def end(self, container: Container) -> None:
        """Stop watching; idempotent."""
        watch = self._watches.pop(container.id, None)
        if watch is not None:
            asyncio.get_running_loop().remove_reader(watch.fileno())
            watch.close()

    def close(self) -> None:
        """Stop watching all."""
        for container_id in list(self._watches):
            watch = self._watches.pop(container_id)
            asyncio.get_running_loop().remove_reader(watch.fileno())
            watch.close()


def reason(name: str, kill: OutOfMemory) -> str:
    """Say in a sentence without a full stop why the container ran out of memory."""
    if kill.own_limit:
        return f"{name} came to its own memory limit of {binary_size(kill.limit_bytes)}"
    size = binary_size(kill.limit_bytes)
    text = f"the machine's memory of {size} was used up when {name} needed more"
    if kill.others:
        held = [f"{use.name} held {binary_size(use.bytes)}" for use in kill.others]
        text += "; " + ", ".join(held)
    return text


def remedy(name: str, kill: OutOfMemory) -> str:
    """Say in a sentence what a person can do about it."""
    if kill.own_limit:
        more = f"{-(-2 * kill.limit_bytes // (1 << 20))}m"
        return (
            f"Give it more with `desk update --memory {more} --memory-swap {more} {name}`, "
            "or find what grows in it."
        )
    return "Give the machine more memory, or limit what grows with `desk update --memory`."
