"""The cgroups of running containers, as the services use them; implements ``Resources``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deskd.domain.container import HostConfig
from deskd.errors import Conflict
from deskd.kernel.cgroup import Cgroup, cgroup_at
from deskd.kernel.cgroup.hierarchy import Hierarchy, detect
from deskd.kernel.cgroup.limits import UNLIMITED, Limits
from deskd.kernel.cgroup.memory import MemoryReading
from deskd.kernel.cgroup.oom import OomWatch
from deskd.kernel.cgroup.stats import read_stats
from deskd.runtime import resource_rules
from deskd.runtime.spec import DEFAULT_CGROUP_PARENT

_PERIOD_US = 100_000  # the kernel's own default


class ContainersCgroup:
    """The cgroup in which all containers are that have no ``HostConfig.CgroupParent`` of their own;
    implements ``ContainersCpu``."""

    def __init__(self, parent: str = "", hierarchy: Hierarchy | None = None) -> None:
        above, _, name = (parent or DEFAULT_CGROUP_PARENT).strip("/").rpartition("/")
        self._cgroup = cgroup_at(hierarchy or detect(), above, name)

    def cap(self, nano_cpus: int) -> None:
        """Limit the CPU time of all containers together, in billionths of a CPU; 0 ends that."""
        if not nano_cpus and not self.capped():
            return
        self._cgroup.create()
        quota_us = nano_cpus * _PERIOD_US // 1_000_000_000 or UNLIMITED
        self._cgroup.apply(Limits(cpu_quota_us=quota_us, cpu_period_us=_PERIOD_US), devices=False)

    def capped(self) -> int:
        """Return the limit that is in force, 0 where there is none."""
        return self._cgroup.nano_cpus() if self._cgroup.exists() else 0


class CgroupResources:
    """``parent_of`` tells the cgroup parent of a container where it may be another than the
    default (``HostConfig.CgroupParent``)."""

    def __init__(
        self,
        parent_of: Callable[[str], str] | None = None,
        hierarchy: Hierarchy | None = None,
    ) -> None:
        self._parent_of = parent_of
        self._hierarchy = hierarchy or detect()

    def _cgroup(self, key: str) -> Cgroup:
        parent = self._parent_of(key) if self._parent_of else ""
        return cgroup_at(self._hierarchy, parent or DEFAULT_CGROUP_PARENT, key)

    def _running(self, key: str) -> Cgroup:
        cgroup = self._cgroup(key)
        if not cgroup.exists():
            raise Conflict(f"container {key[:12]} is not running")
        return cgroup

    def pause(self, key: str) -> None:
        """Freeze every process; returns when they are frozen."""
        self._running(key).freeze()

    def resume(self, key: str) -> None:
        """Let frozen processes go on."""
        self._running(key).thaw()

    def update(self, key: str, host_config: HostConfig) -> None:
        """Write the limits of ``host_config`` to a running container; the device list stays."""
        self._running(key).apply(resource_rules.limits(host_config), devices=False)

    def stats(self, key: str) -> dict[str, Any]:
        """Return what the container uses, in the API's shape."""
        return read_stats(self._running(key))

    def pids(self, key: str) -> list[int]:
        """List the processes by the engine's PIDs; none where the container is not running."""
        cgroup = self._cgroup(key)
        return sorted(pid for pid in cgroup.pids() if pid) if cgroup.exists() else []

    def watch_memory(self, key: str) -> OomWatch:
        """Be told when the container runs out of memory. Raises ``OSError`` and ``Conflict``."""
        return OomWatch(self._running(key))

    @property
    def tells_of_machine_memory(self) -> bool:
        """Whether a watched container is told of when the machine's memory was used up."""
        return self._hierarchy.version == 2

    def came_to_memory_limit(self, key: str) -> bool:
        """Whether the container came to its own limit of memory since it started."""
        return self._cgroup(key).came_to_memory_limit()

    def memory_bytes(self, key: str) -> int:
        """Return the memory that the container uses; 0 where it is not running."""
        return self._cgroup(key).memory_bytes()

    def memory_reading(self, key: str) -> MemoryReading:
        """Look at the container's memory and the most of it. Raises ``Conflict``."""
        return self._running(key).memory_reading()

    def remove(self, key: str) -> None:
        """Kill what is left and remove the cgroup; idempotent."""
        cgroup = self._cgroup(key)
        if cgroup.exists():
            cgroup.kill()
            cgroup.remove()
