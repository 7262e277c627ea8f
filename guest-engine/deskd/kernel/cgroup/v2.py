"""A container's cgroup in the version 2 hierarchy. See the kernel's admin-guide/cgroup-v2."""

from __future__ import annotations

import os
import signal
import time

from deskd.errors import SystemFailure
from deskd.kernel.cgroup import files
from deskd.kernel.cgroup.hierarchy import Hierarchy
from deskd.kernel.cgroup.limits import Limits
from deskd.kernel.cgroup.memory import MemoryReading, reading

_WANTED_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")
_FREEZE_TIMEOUT_S = 5.0


class CgroupV2:
    """The directory ``parent/name``."""

    version = 2

    def __init__(self, hierarchy: Hierarchy, parent: str, name: str) -> None:
        self._root = hierarchy.root
        self._parent = parent.strip("/")
        self.path = f"{self._root}/{self._parent}/{name}"

    def create(self) -> None:
        """Make the directory, and switch the controllers on above it."""
        above = f"{self._root}/{self._parent}"
        if not os.path.exists(above) or self._missing_controllers(above):
            path = self._root
            for part in self._parent.split("/"):
                self._enable_controllers(path)
                path = f"{path}/{part}"
                files.make_directory(path)
            self._enable_controllers(path)
        files.make_directory(self.path)

    @staticmethod
    def _missing_controllers(path: str) -> list[str]:
        available = files.read(f"{path}/cgroup.controllers").split()
        enabled = files.read(f"{path}/cgroup.subtree_control").split()
        wanted = [name for name in _WANTED_CONTROLLERS if name in available]
        return [name for name in wanted if name not in enabled]

    def _enable_controllers(self, path: str) -> None:
        missing = self._missing_controllers(path)
        if not missing:
            return
        try:
            files.write(f"{path}/cgroup.subtree_control", " ".join(f"+{n}" for n in missing))
        except OSError as error:
            raise SystemFailure(
                f"cannot switch on the controllers {' '.join(missing)} in {path}: {error.strerror};"
                " processes in that cgroup must move to one below it first"
            ) from error

    def apply(self, limits: Limits, *, devices: bool = True) -> None:
        """Write what is set in ``limits``; ``devices`` says whether to attach the device list."""
        self._apply_memory(limits)
        self._apply_cpu(limits)
        if limits.pids:
            value = "max" if limits.pids < 0 else str(limits.pids)
            files.write_limit(self.path, "pids.max", value, "a PID limit")
        self._apply_io(limits)
        if devices and limits.devices is not None:
            from deskd.kernel.cgroup import device_filter

            device_filter.attach(self.path, limits.devices)

    def _apply_memory(self, limits: Limits) -> None:
        if limits.memory_bytes:
            value = "max" if limits.memory_bytes < 0 else str(limits.memory_bytes)
            files.write_limit(self.path, "memory.max", value, "a memory limit")
        if limits.memory_swap_bytes:
            swap = limits.memory_swap_bytes
            value = "max" if swap < 0 else str(max(swap - limits.memory_bytes, 0))
            if os.path.exists(f"{self.path}/memory.swap.max"):
                files.write_limit(self.path, "memory.swap.max", value, "a swap limit")
        if limits.memory_reservation_bytes:
            value = str(limits.memory_reservation_bytes)
            files.write_limit(self.path, "memory.low", value, "a memory reservation")

    def _apply_cpu(self, limits: Limits) -> None:
        if limits.cpu_shares:
            weight = 1 + (min(max(limits.cpu_shares, 2), 262144) - 2) * 9999 // 262142
            files.write_limit(self.path, "cpu.weight", str(weight), "a CPU share")
        if limits.cpu_quota_us or limits.cpu_period_us:
            quota = str(limits.cpu_quota_us) if limits.cpu_quota_us > 0 else "max"
            period = limits.cpu_period_us or 100_000
            files.write_limit(self.path, "cpu.max", f"{quota} {period}", "a CPU limit")
        if limits.cpuset_cpus:
            files.write_limit(self.path, "cpuset.cpus", limits.cpuset_cpus, "a CPU set")
        if limits.cpuset_mems:
            files.write_limit(self.path, "cpuset.mems", limits.cpuset_mems, "a memory node set")

    def _apply_io(self, limits: Limits) -> None:
        if limits.blkio_weight or limits.blkio_weight_devices:
            bfq = os.path.exists(f"{self.path}/io.bfq.weight")
            name = "io.bfq.weight" if bfq else "io.weight"

            def weight(wanted: int) -> int:  # 10..1000; io.weight goes from 1 to 10000
                return wanted if bfq else 1 + (wanted - 10) * 9999 // 990

            if limits.blkio_weight:
                value = f"default {weight(limits.blkio_weight)}"
                files.write_limit(self.path, name, value, "a block I/O weight")
            for item in limits.blkio_weight_devices:
                value = f"{item.major}:{item.minor} {weight(item.rate)}"
                files.write_limit(self.path, name, value, "a device weight")
        for key, items in (
            ("rbps", limits.read_bps),
            ("wbps", limits.write_bps),
            ("riops", limits.read_iops),
            ("wiops", limits.write_iops),
        ):
            for item in items:
                value = f"{item.major}:{item.minor} {key}={item.rate or 'max'}"
                files.write_limit(self.path, "io.max", value, "a device rate limit")

    def nano_cpus(self) -> int:
        """Return the limit of CPU time in billionths of a CPU, 0 where there is none."""
        quota, _, period = files.read(f"{self.path}/cpu.max").partition(" ")
        return int(quota) * 1_000_000_000 // int(period) if quota.isdigit() else 0

    def join(self) -> None:
        """Move this process in."""
        files.write(f"{self.path}/cgroup.procs", "0")

    def add(self, pid: int) -> None:
        """Move another process in."""
        files.write(f"{self.path}/cgroup.procs", str(pid))

    def open(self) -> int | None:
        """Open the directory: ``clone`` then puts the child there at no cost."""
        return os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_beside(self, pid: int) -> int | None:
        """Open the cgroup below this one that ``pid`` is in, ``None`` where it is in this one.

        A container may hand its controllers down to cgroups of its own (as engines and service
        managers in containers do); its own directory then takes no processes any more.
        """
        with open(f"/proc/{pid}/cgroup") as file:
            lines = file.read().splitlines()
        paths = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
        path = os.path.normpath(f"{self._root}/{paths[0]}") if paths else ""
        if not path.startswith(f"{self.path}/"):
            return None
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def exists(self) -> bool:
        """Say whether the directory is there."""
        return os.path.isdir(self.path)

    def pids(self) -> list[int]:
        """List the processes, also those in cgroups that the container made for itself."""
        found = []
        for directory, _, _ in os.walk(self.path):
            found += [int(line) for line in files.read(f"{directory}/cgroup.procs").split()]
        return found

    def kill(self) -> None:
        """Kill every process."""
        try:
            files.write(f"{self.path}/cgroup.kill", "1")  # Linux 5.14
        except FileNotFoundError:
            for pid in self.pids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def freeze(self) -> None:
        """Stop every process; return when all are stopped."""
        self._set_frozen(1)

    def thaw(self) -> None:
        """Let the processes go on."""
        self._set_frozen(0)

    def _set_frozen(self, wanted: int) -> None:
        files.write(f"{self.path}/cgroup.freeze", str(wanted))
        deadline = time.monotonic() + _FREEZE_TIMEOUT_S
        while files.read_pairs(f"{self.path}/cgroup.events").get("frozen") != wanted:
            if time.monotonic() > deadline:
                files.write(f"{self.path}/cgroup.freeze", "0")
                raise SystemFailure(f"the processes of {self.path} could not be frozen")
            time.sleep(0.001)

    def oom_kills(self) -> int:
        """Count the processes that the kernel killed for lack of memory."""
        return files.read_pairs(f"{self.path}/memory.events").get("oom_kill", 0)

    def came_to_memory_limit(self) -> bool:
        """Whether the group itself came to its limit of memory and the kernel had to kill, ever."""
        return files.read_pairs(f"{self.path}/memory.events").get("oom", 0) > 0

    def memory_bytes(self) -> int:
        """Return the memory in use without the page cache that could be given back at once."""
        cache = files.read_pairs(f"{self.path}/memory.stat").get("inactive_file", 0)
        return max(files.read_number(f"{self.path}/memory.current") - cache, 0)

    def memory_reading(self) -> MemoryReading:
        """Look at the memory. Before Linux 5.19 there is no ``memory.peak``: what is used now is
        the highest known."""
        return reading(
            files.read_number(f"{self.path}/memory.current"),
            files.read_number(f"{self.path}/memory.peak"),
            files.read_pairs(f"{self.path}/memory.stat"),
        )

    def remove(self) -> None:
        """Remove the directory; idempotent."""
        files.remove_tree(self.path)
