"""How a job gets to where its work is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from deskd.domain.mount import MountStep
from deskd.errors import Conflict
from deskd.kernel import namespaces
from deskd.runtime.plan import decode_mount_step
from deskd.runtime.rootfs import Root, detach_from_engine


def enter_container(pid: int, kinds: Sequence[str] = ("mnt",)) -> None:
    """Join namespaces (``mnt``, ``net``, ``user`` …) of a running container's first process.

    With ``mnt`` the container's root becomes this process's, so paths are the container's own and
    cannot lead out of it. Raises ``Conflict`` where the process has ended.
    """
    try:
        opened = [(name, namespaces.open_namespace(pid, name)) for name in kinds]
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Conflict("the container is not running: its first process has ended") from error
    for name, fd in opened:
        namespaces.setns(fd, namespaces.FLAGS[name])
        os.close(fd)
    if "mnt" in kinds:
        os.fchdir(root)
        os.chroot(".")
        os.chdir("/")
    os.close(root)


def enter_root(steps: Sequence[MountStep | Mapping[str, Any]], staging: str) -> None:
    """Build a stopped container's root in a private mount namespace and chroot into it.

    ``staging`` is an existing engine-side directory that the mounts cover; nothing of them is
    seen outside this process, and the kernel undoes them when it ends.
    """
    namespaces.unshare(namespaces.CLONE_NEWNS)
    detach_from_engine()
    root = Root(staging)
    root.build([step if isinstance(step, MountStep) else decode_mount_step(step) for step in steps])
    os.fchdir(root.fd)
    os.chroot(".")
    os.chdir("/")
    os.close(root.fd)
