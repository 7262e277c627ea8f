"""``docker update``: limits and the restart policy of a container that lives on."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from deskd.domain.container import HostConfig
from deskd.errors import Conflict, DeskdError, InvalidArgument
from deskd.kernel.cgroup.features import Features
from deskd.services.containers.lifecycle import in_cgroup
from deskd.services.containers.merging import check_restart_policy
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.containers.resource_checks import (
    check_ranges,
    check_resources,
    discard_unsupported,
)
from deskd.services.ports import Resources

_UPDATABLE = (
    "blkio_weight",
    "blkio_weight_device",
    "blkio_device_read_bps",
    "blkio_device_write_bps",
    "blkio_device_read_iops",
    "blkio_device_write_iops",
    "cpu_period",
    "cpu_quota",
    "cpu_realtime_period",
    "cpu_realtime_runtime",
    "cpu_shares",
    "cpuset_cpus",
    "cpuset_mems",
    "memory",
    "memory_reservation",
    "memory_swap",
    "nano_cpus",
)


class Updating:
    """Changes containers."""

    def __init__(
        self, registry: ContainerRegistry, resources: Resources, features: Features
    ) -> None:
        self._registry = registry
        self._resources = resources
        self._features = features

    async def update(self, reference: str, changes: HostConfig) -> list[str]:
        """Change limits and restart policy; a running container obeys at once. Returns warnings.

        Zero values mean "as before". Raises ``InvalidArgument`` and ``Conflict``; nothing has
        changed then.
        """
        container = self._registry.get(reference)
        async with container.lock:
            old = container.record.host_config
            check_ranges(changes)
            changes, warnings = discard_unsupported(changes, self._features)
            check_resources(changes, self._features, update=True)
            check_restart_policy(changes.restart_policy)
            try:
                new = updated_host_config(old, changes)
            except (InvalidArgument, Conflict) as error:
                raise type(error)(f"Cannot update container {container.id}: {error}") from error
            limits = msgspec.structs.replace(new, restart_policy=old.restart_policy)
            if container.record.state.running and limits != old:
                await self._apply(container, old, new)
            container.record.host_config = new
            self._registry.save(container)
            self._registry.tell(container, "update")
        return warnings

    async def _apply(self, container: Container, old: HostConfig, new: HostConfig) -> None:
        try:
            await in_cgroup(container, lambda key: self._resources.update(key, new))
        except DeskdError:
            # The kernel may have taken some of the limits before it refused one.
            with suppress(DeskdError):
                await in_cgroup(container, lambda key: self._resources.update(key, old))
            raise


def updated_host_config(old: HostConfig, changes: HostConfig) -> HostConfig:
    """Return ``old`` with the limits and the restart policy that ``changes`` names.

    Raises ``Conflict`` for a memory limit above the present swap limit (where there is none, too),
    for two ways of saying how much CPU and for a restart policy of a container that removes itself,
    as Docker does; ``InvalidArgument`` for a swap limit that does not fit.
    """
    values = {
        name: getattr(changes, name)
        for name in _UPDATABLE
        if getattr(changes, name) not in (0, "", None, [])
    }
    if "memory" in values and "memory_swap" not in values and old.memory_swap < changes.memory:
        raise Conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the "
            "memoryswap at the same time"
        )
    if "memory_swap" in values and changes.memory_swap > 0:
        memory = changes.memory or old.memory
        if not memory:
            raise InvalidArgument("a memory and swap limit needs a memory limit: set it, too")
        if changes.memory_swap < memory:
            raise InvalidArgument(
                "Minimum memoryswap limit should be larger than memory limit, see usage"
            )
    for name, what in (("cpu_period", "Period"), ("cpu_quota", "Quota")):
        if name in values and old.nano_cpus:
            raise Conflict(
                f"Conflicting options: CPU {what} cannot be updated as NanoCPUs has already been "
                "set"
            )
        if "nano_cpus" in values and getattr(old, name):
            raise Conflict(
                f"Conflicting options: Nano CPUs cannot be updated as CPU {what} has already "
                "been set"
            )
    if changes.pids_limit is not None:
        values["pids_limit"] = max(changes.pids_limit, 0)  # 0 and below: no limit any more
    if changes.restart_policy.name:
        if old.auto_remove and changes.restart_policy.name != "no":
            raise Conflict(
                "Restart policy cannot be updated because AutoRemove is enabled for the container"
            )
        values["restart_policy"] = changes.restart_policy
    return msgspec.structs.replace(old, **values)
