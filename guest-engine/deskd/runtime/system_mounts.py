"""What every container finds in its file system beside its image: /proc, /dev, /sys, cgroups.

Kinds, flags and modes are Docker's defaults. Runs in the container's mount namespace, before the
root is pivoted.
"""

from __future__ import annotations

import os
import stat

from deskd.domain.mount import MountStep
from deskd.kernel import mount as sys
from deskd.kernel.cgroup import Cgroup
from deskd.kernel.cgroup.v1 import CgroupV1
from deskd.runtime.plan import DeviceNode, RootSpec
from deskd.runtime.rootfs import Root

_SAFE = ("nosuid", "nodev", "noexec")
_KERNEL_MEMORY = "/proc/kcore"  # kernels may be without it
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", _KERNEL_MEMORY),
    ("ptmx", "pts/ptmx"),
)
_TTY_GROUP = 5


def mount_proc_and_dev(
    root: Root, spec: RootSpec, shm_tree: int | None, *, user_ns: bool, own_ipc: bool
) -> None:
    """Mount /proc and /dev with everything in it; ``shm_tree`` is another container's /dev/shm.
    Without ``own_ipc`` message queues cannot be mounted for a namespace that is the machine's."""
    root.perform(MountStep("proc", "/proc", flags=_SAFE))
    root.perform(
        MountStep("tmpfs", "/dev", data="mode=755,size=65536k", flags=("nosuid", "strictatime"))
    )
    dev = root.open("/dev", os.O_PATH | os.O_DIRECTORY)
    try:
        for node in spec.devices:
            _make_node(root, dev, node, user_ns=user_ns)
        for name, goal in _LINKS:
            if goal != _KERNEL_MEMORY or os.path.exists(goal):
                os.symlink(goal, name, dir_fd=dev)
        for name in ("pts", "mqueue", "shm") if spec.shm_size_bytes else ("pts", "mqueue"):
            os.mkdir(name, 0o755, dir_fd=dev)
    finally:
        os.close(dev)
    data = "newinstance,ptmxmode=0666,mode=0620"
    if not user_ns:
        data += f",gid={_TTY_GROUP}"
    root.perform(MountStep("devpts", "/dev/pts", data=data, flags=("nosuid", "noexec")))
    if own_ipc:
        root.perform(MountStep("mqueue", "/dev/mqueue", flags=_SAFE))
    elif os.path.isdir("/dev/mqueue"):
        root.perform(MountStep("bind", "/dev/mqueue", source="/dev/mqueue", flags=_SAFE))
    if shm_tree is not None:
        root.attach(shm_tree, "/dev/shm")
    elif spec.shm_size_bytes:
        data = f"mode=1777,size={spec.shm_size_bytes}"
        root.perform(MountStep("tmpfs", "/dev/shm", source="shm", data=data, flags=_SAFE))


def _make_node(root: Root, dev: int, node: DeviceNode, *, user_ns: bool) -> None:
    name = os.path.relpath(node.path, "/dev")
    if name.startswith(".."):
        parent = root.make_directories(os.path.dirname(node.path))
        name = os.path.basename(node.path)
    else:
        parent = os.dup(dev)
        if "/" in name:
            os.close(parent)
            parent = root.make_directories(os.path.dirname(node.path))
            name = os.path.basename(node.path)
    try:
        if user_ns:
            # mknod is refused in a user namespace; the machine's own node serves.
            tree = sys.open_tree(node.source or node.path)
            root.attach(tree, node.path)
            os.close(tree)
            return
        kind = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}[node.kind]
        os.mknod(name, kind | node.mode, os.makedev(node.major, node.minor), dir_fd=parent)
        if node.uid or node.gid:
            os.chown(name, node.uid, node.gid, dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(parent)


def mount_sys(root: Root, spec: RootSpec, *, own_network: bool) -> None:
    """Mount /sys; where the network namespace is not the container's own to mount it for, bind
    the machine's."""
    if own_network:
        root.perform(MountStep("sysfs", "/sys", flags=_SAFE, read_only=not spec.writable_system))
        return
    root.perform(
        MountStep(
            "bind",
            "/sys",
            source="/sys",
            flags=_SAFE,
            read_only=not spec.writable_system,
        )
    )


def mount_cgroups(root: Root, cgroup: Cgroup, spec: RootSpec, *, private: bool) -> None:
    """Mount /sys/fs/cgroup: the container's own view, or with the machine's namespace a bind."""
    target = "/sys/fs/cgroup"
    read_only = not spec.writable_system
    flags = (*_SAFE, "relatime")
    if not isinstance(cgroup, CgroupV1):
        step = MountStep("cgroup", target, source="cgroup", flags=flags, read_only=read_only)
        if not private:
            step = MountStep("bind", target, source=target, flags=_SAFE, read_only=read_only)
        root.perform(step)
        return
    data = "mode=755,size=65536k"
    root.perform(MountStep("tmpfs", target, data=data, flags=_SAFE))
    for name, options, directory in cgroup.mounted_paths():
        step = MountStep(
            "cgroup",
            f"{target}/{name}",
            source="cgroup",
            data=options,
            flags=flags,
            read_only=read_only,
        )
        if not private:
            step = MountStep(
                "bind", step.target, source=directory, flags=_SAFE, read_only=read_only
            )
        root.perform(step)
        parts = name.split(",")
        for part in parts if len(parts) > 1 else ():
            here = root.open(target, os.O_PATH | os.O_DIRECTORY)
            os.symlink(name, part, dir_fd=here)
            os.close(here)
    if read_only:
        here = root.open(target, os.O_PATH | os.O_DIRECTORY)
        try:
            sys.mount_setattr(here, set_flags=sys.MOUNT_ATTR_RDONLY)
        finally:
            os.close(here)
