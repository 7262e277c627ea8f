"""A container's cgroups in the version 1 hierarchies. See the kernel's admin-guide/cgroup-v1."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time

from deskd.errors import InvalidArgument, SystemFailure
from deskd.kernel.cgroup import files
from deskd.kernel.cgroup.hierarchy import Hierarchy
from deskd.kernel.cgroup.limits import DeviceRule, Limits
from deskd.kernel.cgroup.memory import MemoryReading, reading

_CHARGED_AHEAD_BYTES = 1 << 20
"""The kernel charges memory in batches for each processor, and refuses a batch that would exceed
the limit."""
_FREEZE_TIMEOUT_S = 5.0


class CgroupV1:
    """The directories ``parent/name`` below each controller."""

    version = 1

    def __init__(self, hierarchy: Hierarchy, parent: str, name: str) -> None:
        self._hierarchy = hierarchy
        self._parent = parent.strip("/")
        self._relative = f"{self._parent}/{name}"
        self._mount_points = hierarchy.mount_points()

    def directory(self, controller: str) -> str:
        """Return the directory below one controller; raise ``Unsupported`` without it."""
        try:
            return f"{self._hierarchy.controllers[controller]}/{self._relative}"
        except KeyError:
            raise files.missing(controller, "running a container") from None

    def directories(self) -> list[str]:
        """List the directories, one for each mounted hierarchy."""
        return [f"{path}/{self._relative}" for path in self._mount_points]

    def create(self) -> None:
        """Make the directories."""
        for path, controllers in self._mount_points.items():
            try:
                new = files.make_directory(f"{path}/{self._relative}")
            except FileNotFoundError:
                self._create_parents(path, controllers)
                new = files.make_directory(f"{path}/{self._relative}")
            if new and "cpuset" in controllers:
                self._inherit_cpuset(f"{path}/{self._relative}")

    def _create_parents(self, mount_point: str, controllers: list[str]) -> None:
        path = mount_point
        for part in self._parent.split("/"):
            path = f"{path}/{part}"
            if files.make_directory(path) and "cpuset" in controllers:
                self._inherit_cpuset(path)

    def _inherit_cpuset(self, path: str) -> None:
        """A new cpuset is empty, and nothing can run in it. The one above may be as new, made by
        another start a moment ago."""
        above = os.path.dirname(path)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if files.read(f"{path}/{name}"):
                continue
            if not files.read(f"{above}/{name}"):
                self._inherit_cpuset(above)
            files.write(f"{path}/{name}", files.read(f"{above}/{name}"))

    def apply(self, limits: Limits, *, devices: bool = True) -> None:
        """Write what is set in ``limits``; ``devices`` says whether to write the device list."""
        self._apply_memory(limits)
        self._apply_cpu(limits)
        if limits.pids:
            value = "max" if limits.pids < 0 else str(limits.pids)
            files.write_limit(self.directory("pids"), "pids.max", value, "a PID limit")
        self._apply_blkio(limits)
        if devices and limits.devices is not None:
            self._apply_devices(limits.devices)

    def _apply_memory(self, limits: Limits) -> None:
        if limits.memory_bytes:
            self._set_memory(limits.memory_bytes, limits.memory_swap_bytes)
        if limits.memory_reservation_bytes:
            files.write_limit(
                self.directory("memory"),
                "memory.soft_limit_in_bytes",
                str(limits.memory_reservation_bytes),
                "a memory reservation",
            )
        if limits.memory_swappiness is not None:
            files.write_limit(
                self.directory("memory"),
                "memory.swappiness",
                str(limits.memory_swappiness),
                "memory swappiness",
            )
        if limits.oom_kill_disable:
            files.write_limit(
                self.directory("memory"), "memory.oom_control", "1", "--oom-kill-disable"
            )

    def _set_memory(self, memory: int, swap: int) -> None:
        directory = self.directory("memory")
        steps = [("memory.limit_in_bytes", memory)]
        if swap and os.path.exists(f"{directory}/memory.memsw.limit_in_bytes"):
            steps.append(("memory.memsw.limit_in_bytes", swap))
            # The kernel keeps memory <= memory+swap at every moment, so growing goes backwards.
            if memory > files.read_number(f"{directory}/memory.memsw.limit_in_bytes"):
                steps.reverse()
        for name, value in steps:
            files.write_limit(directory, name, str(value), "a memory limit")

    def _apply_cpu(self, limits: Limits) -> None:
        for name, value in (
            ("cpu.shares", limits.cpu_shares),
            ("cpu.cfs_period_us", limits.cpu_period_us),
            ("cpu.cfs_quota_us", limits.cpu_quota_us),
        ):
            if value:
                files.write_limit(self.directory("cpu"), name, str(value), "a CPU limit")
        if limits.cpu_rt_period_us or limits.cpu_rt_runtime_us:
            self._apply_realtime(limits)
        for name, text in (
            ("cpuset.cpus", limits.cpuset_cpus),
            ("cpuset.mems", limits.cpuset_mems),
        ):
            if text:
                files.write_limit(self.directory("cpuset"), name, text, "a CPU set")

    def nano_cpus(self) -> int:
        """Return the limit of CPU time in billionths of a CPU, 0 where there is none."""
        if "cpu" not in self._hierarchy.controllers:
            return 0
        directory = self.directory("cpu")
        quota_us = files.read_number(f"{directory}/cpu.cfs_quota_us", -1)
        period_us = files.read_number(f"{directory}/cpu.cfs_period_us")
        return quota_us * 1_000_000_000 // period_us if quota_us > 0 and period_us else 0

    def _apply_realtime(self, limits: Limits) -> None:
        directory = self.directory("cpu")
        if limits.cpu_rt_period_us:
            files.write_limit(
                directory, "cpu.rt_period_us", str(limits.cpu_rt_period_us), "a real-time period"
            )
        if not limits.cpu_rt_runtime_us:
            return
        # A group has real-time only out of its parent's share, and new parents have none. They get
        # what their groups need and no more, because the machine has one share for everybody.
        period_us = files.read_number(f"{directory}/cpu.rt_period_us", 1)
        path = self._hierarchy.controllers["cpu"]
        for part in self._parent.split("/"):
            path = f"{path}/{part}"
            with contextlib.suppress(InvalidArgument):  # the group's own write tells it better
                _grant_realtime(path, limits.cpu_rt_runtime_us / period_us)
        files.write_limit(
            directory, "cpu.rt_runtime_us", str(limits.cpu_rt_runtime_us), "a real-time runtime"
        )

    def _apply_blkio(self, limits: Limits) -> None:
        if limits.blkio_weight or limits.blkio_weight_devices:
            directory = self.directory("blkio")
            prefix = "blkio.bfq." if os.path.exists(f"{directory}/blkio.bfq.weight") else "blkio."
            if limits.blkio_weight:
                files.write_limit(
                    directory, f"{prefix}weight", str(limits.blkio_weight), "a block I/O weight"
                )
            for item in limits.blkio_weight_devices:
                value = f"{item.major}:{item.minor} {item.rate}"
                files.write_limit(directory, f"{prefix}weight_device", value, "a device weight")
        for name, items in (
            ("read_bps_device", limits.read_bps),
            ("write_bps_device", limits.write_bps),
            ("read_iops_device", limits.read_iops),
            ("write_iops_device", limits.write_iops),
        ):
            for item in items:
                files.write_limit(
                    self.directory("blkio"),
                    f"blkio.throttle.{name}",
                    f"{item.major}:{item.minor} {item.rate}",
                    "a device rate limit",
                )

    def _apply_devices(self, rules: tuple[DeviceRule, ...]) -> None:
        directory = self.directory("devices")
        files.write_limit(directory, "devices.deny", "a *:* rwm", "the device list")
        for rule in rules:
            major = "*" if rule.major is None else rule.major
            minor = "*" if rule.minor is None else rule.minor
            name = "devices.allow" if rule.allow else "devices.deny"
            files.write_limit(
                directory, name, f"{rule.kind} {major}:{minor} {rule.access}", "the device list"
            )

    def join(self) -> None:
        """Move this single-threaded process in. Writing 0 to ``tasks`` spares the kernel the
        global lock (some milliseconds each) that ``cgroup.procs`` takes."""
        for directory in self.directories():
            files.write(f"{directory}/tasks", "0")

    def add(self, pid: int) -> None:
        """Move another process in."""
        for directory in self.directories():
            files.write(f"{directory}/cgroup.procs", str(pid))

    def open(self) -> int | None:
        """Version 2 opens its directory for ``clone``; here there is nothing to open."""
        return None

    def open_beside(self, pid: int) -> int | None:
        """Version 2 needs it where a directory takes no processes; here every one does."""
        return None

    def mounted_paths(self) -> list[tuple[str, str, str]]:
        """List what a container sees: (directory name, options to mount, directory to bind)."""
        found = []
        for path, controllers in self._mount_points.items():
            options = ",".join(controllers)
            name = options.removeprefix("name=")
            found.append((name, options, f"{path}/{self._relative}"))
        return found

    def exists(self) -> bool:
        """Say whether any of the directories is there."""
        return any(os.path.isdir(directory) for directory in self.directories())

    def _process_list(self) -> str:
        for controller in ("pids", "freezer", "memory", "cpu", "devices"):
            if controller in self._hierarchy.controllers:
                return f"{self.directory(controller)}/cgroup.procs"
        return f"{self.directories()[0]}/cgroup.procs"

    def pids(self) -> list[int]:
        """List the processes, as this process's PID namespace numbers them."""
        return [int(line) for line in files.read(self._process_list()).split()]

    def kill(self) -> None:
        """Kill every process; new ones that appear meanwhile too. Frozen ones must thaw to die."""
        if "freezer" in self._hierarchy.controllers:
            with contextlib.suppress(FileNotFoundError):
                files.write(f"{self.directory('freezer')}/freezer.state", "THAWED")
        for _ in range(50):
            pids = [pid for pid in self.pids() if pid]
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.005)

    def freeze(self) -> None:
        """Stop every process; return when all are stopped."""
        self._set_frozen("FROZEN")

    def thaw(self) -> None:
        """Let the processes go on."""
        self._set_frozen("THAWED")

    def _set_frozen(self, wanted: str) -> None:
        if "freezer" not in self._hierarchy.controllers:
            raise files.missing("freezer", "pausing a container")
        path = f"{self.directory('freezer')}/freezer.state"
        deadline = time.monotonic() + _FREEZE_TIMEOUT_S
        files.write(path, wanted)
        while files.read(path) != wanted:
            if time.monotonic() > deadline:
                files.write(path, "THAWED")
                raise SystemFailure(f"the processes of {self._relative} could not be frozen")
            time.sleep(0.001)
            if wanted == "FROZEN":
                files.write(path, wanted)

    def oom_kills(self) -> int:
        """Count the processes that the kernel killed for lack of memory."""
        if "memory" not in self._hierarchy.controllers:
            return 0
        return files.read_pairs(f"{self.directory('memory')}/memory.oom_control").get("oom_kill", 0)

    def came_to_memory_limit(self) -> bool:
        """Whether the group itself came to its limit of memory, or of memory and swap, ever.

        Told by the most it used: newer kernels do not count failures of memory with swap.
        """
        if "memory" not in self._hierarchy.controllers:
            return False
        memory = self.directory("memory")
        for name in ("memory", "memory.memsw"):
            most = files.read_number(f"{memory}/{name}.max_usage_in_bytes")
            limit = files.read_number(f"{memory}/{name}.limit_in_bytes")
            if 0 < limit <= most + _CHARGED_AHEAD_BYTES:
                return True
        return False

    def memory_bytes(self) -> int:
        """Return the memory in use without the page cache that could be given back at once."""
        if "memory" not in self._hierarchy.controllers:
            return 0
        memory = self.directory("memory")
        cache = files.read_pairs(f"{memory}/memory.stat").get("total_inactive_file", 0)
        return max(files.read_number(f"{memory}/memory.usage_in_bytes") - cache, 0)

    def memory_reading(self) -> MemoryReading:
        """Look at the memory; all is 0 where there is no such controller."""
        if "memory" not in self._hierarchy.controllers:
            return MemoryReading()
        memory = self.directory("memory")
        return reading(
            files.read_number(f"{memory}/memory.usage_in_bytes"),
            files.read_number(f"{memory}/memory.max_usage_in_bytes"),
            files.read_pairs(f"{memory}/memory.stat"),
        )

    def remove(self) -> None:
        """Remove the directories; idempotent."""
        for directory in self.directories():
            files.remove_tree(directory)


def _grant_realtime(path: str, wanted: float) -> None:
    """Let the group at ``path`` have real-time enough for those below it and for ``wanted`` (a
    part of one processor's time) beside them."""
    taken = 0.0
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                runtime_us = files.read_number(f"{entry.path}/cpu.rt_runtime_us")
                taken += runtime_us / files.read_number(f"{entry.path}/cpu.rt_period_us", 1)
    period_us = files.read_number(f"{path}/cpu.rt_period_us", 1)
    needed_us = math.ceil((taken + wanted) * period_us)
    if files.read_number(f"{path}/cpu.rt_runtime_us") < needed_us:
        files.write_limit(path, "cpu.rt_runtime_us", str(needed_us), "real-time scheduling")
