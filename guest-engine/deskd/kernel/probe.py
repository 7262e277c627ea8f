"""What this kernel can do, and which option is missing where it cannot."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from deskd.kernel.cgroup.hierarchy import detect
from deskd.record import Record


class Feature(Record):
    """A kernel feature: the option that gives it and what needs it. Without an ``essential`` one
    no container can be started."""

    name: str
    option: str
    needed_for: str
    present: bool
    essential: bool = False

    def hint(self) -> str:
        """Say what is missing, in one sentence."""
        return f"this kernel lacks {self.name} ({self.option}), needed for {self.needed_for}"


_NAMESPACES = (
    ("mnt", "mount namespaces", "CONFIG_NAMESPACES", "every container"),
    ("uts", "UTS namespaces", "CONFIG_UTS_NS", "a container's own host name"),
    ("ipc", "IPC namespaces", "CONFIG_IPC_NS", "a container's own IPC"),
    ("pid", "PID namespaces", "CONFIG_PID_NS", "every container"),
    ("net", "network namespaces", "CONFIG_NET_NS", "container networks"),
    ("user", "user namespaces", "CONFIG_USER_NS", "--userns-remap"),
    ("cgroup", "cgroup namespaces", "CONFIG_CGROUPS", "--cgroupns=private"),
)

_FILE_SYSTEMS = (
    ("overlay", "CONFIG_OVERLAY_FS", "container file systems"),
    ("mqueue", "CONFIG_POSIX_MQUEUE", "/dev/mqueue"),
    ("tmpfs", "CONFIG_TMPFS", "/dev, /dev/shm and --tmpfs"),
)

_CONTROLLERS = (
    ("memory", "CONFIG_MEMCG", "--memory"),
    ("cpu", "CONFIG_FAIR_GROUP_SCHED", "--cpus and --cpu-shares"),
    ("cpuset", "CONFIG_CPUSETS", "--cpuset-cpus"),
    ("pids", "CONFIG_CGROUP_PIDS", "--pids-limit"),
)


_ESSENTIAL = frozenset({"mnt", "uts", "ipc", "pid", "net", "overlay", "tmpfs"})


def features() -> list[Feature]:
    """Look at /proc and /sys for everything that containers need."""
    with open("/proc/filesystems") as file:
        known = {line.split()[-1] for line in file if line.strip()}
    found = [
        Feature(name, option, use, os.path.exists(f"/proc/self/ns/{kind}"), kind in _ESSENTIAL)
        for kind, name, option, use in _NAMESPACES
    ]
    found += [
        Feature(
            f"the {name} file system",
            option,
            use,
            name in known or _loadable(name),
            name in _ESSENTIAL,
        )
        for name, option, use in _FILE_SYSTEMS
    ]
    available = _controllers()
    found += [
        Feature(f"the cgroup controller {name}", option, use, name in available)
        for name, option, use in _CONTROLLERS
    ]
    found.append(
        Feature(
            "seccomp filters",
            "CONFIG_SECCOMP_FILTER",
            "the default confinement",
            os.path.exists("/proc/sys/kernel/seccomp/actions_avail"),
        )
    )
    return found


def missing() -> list[Feature]:
    """List the features that are not there."""
    return [feature for feature in features() if not feature.present]


def _loadable(module: str) -> bool:
    """A file system may be a module that is loaded at its first mount."""
    directory = f"/lib/modules/{os.uname().release}"
    for name in ("modules.dep", "modules.builtin"):
        try:
            with open(f"{directory}/{name}") as file:
                if any(f"/{module}.ko" in line for line in file):
                    return True
        except FileNotFoundError:
            continue
    return False


def _controllers() -> Sequence[str]:
    hierarchy = detect()
    if hierarchy.version == 1:
        return list(hierarchy.controllers)
    with open(f"{hierarchy.root}/cgroup.controllers") as file:
        return file.read().split()


_OPTIONS_OF_MOUNTS = {
    "overlay": "CONFIG_OVERLAY_FS",
    "tmpfs": "CONFIG_TMPFS",
    "proc": "CONFIG_PROC_FS",
    "sysfs": "CONFIG_SYSFS",
    "mqueue": "CONFIG_POSIX_MQUEUE",
    "devpts": "CONFIG_UNIX98_PTYS",
    "cgroup": "CONFIG_CGROUPS",
    "cgroup2": "CONFIG_CGROUPS",
}


def explain(step: str, number: int) -> str:
    """Name the kernel option that a failed step lacked, ``""`` where the errno does not tell."""
    kind = step.split(" ", 1)[0]
    if number == errno.ENODEV and kind in _OPTIONS_OF_MOUNTS:
        return f"the kernel lacks {_OPTIONS_OF_MOUNTS[kind]}"
    if number == errno.ENOSYS:
        return "the kernel is too old: Linux 5.12 or newer is needed"
    if kind == "namespaces" and number == errno.EINVAL:
        lacking = [option for key, _, option, _ in _NAMESPACES if not _has(key)]
        return f"the kernel lacks {', '.join(lacking)}" if lacking else ""
    if kind == "namespaces" and number == errno.ENOSPC:
        return "a limit in /proc/sys/user (max_*_namespaces) is reached"
    return ""


def _has(kind: str) -> bool:
    return os.path.exists(f"/proc/self/ns/{kind}")
