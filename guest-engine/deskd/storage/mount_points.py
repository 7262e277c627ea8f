"""The lowest layer of every container: empty places for what the engine mounts into its root.

It is one directory for all containers. What an image has in these places hides it, and a container
that writes nothing has nothing of its own on the disk.
"""

from __future__ import annotations

import os
from contextlib import suppress

_DIRECTORIES = ("dev", "dev/pts", "dev/shm", "etc", "proc", "sys")
_FILES = (
    ".dockerenv",  # by which programs know that they are in a container
    "dev/console",
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
)
_MODE = 0o755
_LINKS = {"etc/mtab": "/proc/mounts"}


def make_mount_points(directory: str) -> None:
    """Make the layer, or what is missing of it."""
    for name in ("", *_DIRECTORIES):
        path = os.path.join(directory, name)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, _MODE)
    for name in _FILES:
        path = os.path.join(directory, name)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, _MODE))
        os.chmod(path, _MODE)
    for name, target in _LINKS.items():
        with suppress(FileExistsError):
            os.symlink(target, os.path.join(directory, name))
