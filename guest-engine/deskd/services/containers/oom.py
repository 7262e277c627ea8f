"""Telling that a container has run out of memory in the moment when it does.

The kernel may have killed a child only; the container then runs on with ``OOMKilled`` set.
"""

from __future__ import annotations

import asyncio
import logging

from deskd.errors import DeskdError
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.ports import MemoryWatch, Resources

log = logging.getLogger(__name__)


class OutOfMemory:
    """Watches the running containers that have a memory limit."""

    def __init__(self, registry: ContainerRegistry, resources: Resources) -> None:
        self._registry = registry
        self._resources = resources
        self._watches: dict[str, MemoryWatch] = {}

    def begin(self, container: Container) -> None:
        """Watch a running container; one without a limit needs no watch."""
        self.end(container)
        if not container.record.host_config.memory:
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
            self._registry.save(container)
            self._registry.tell(container, "oom")

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
