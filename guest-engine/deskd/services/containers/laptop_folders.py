"""Bind mounts whose source is a folder of a laptop: which ones, and where they are at a start."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

import msgspec

from deskd.domain.container import HostConfig
from deskd.domain.state import MountPoint

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_OF_THE_MACHINE = (
    "/dev", "/lib/modules", "/proc", "/run/desk", "/run/docker.sock", "/sys", "/var/lib/desk",
    "/var/run/desk", "/var/run/docker.sock",
)  # fmt: skip
"""Paths that mean this machine's own, whatever the laptop has there: the kernel that containers run
on is the machine's, and so are its modules and the engine's socket."""


def is_windows_path(source: str) -> bool:
    """Tell whether this is a path such as ``C:\\src``."""
    return _DRIVE.match(source) is not None


def split_bind(text: str) -> list[str]:
    """Cut ``SOURCE:TARGET[:MODE]`` at its colons, but not behind the drive of a Windows path."""
    if is_windows_path(text):
        rest = text[2:].split(":")
        return [text[:2] + rest[0], *rest[1:]]
    return text.split(":")


def sources(host_config: HostConfig) -> list[str]:
    """Return the paths that a new container's ``-v`` and ``--mount`` bind, where they may be a
    laptop's."""
    found = [split_bind(text)[0] for text in host_config.binds or [] if ":" in text]
    found += [mount.source for mount in host_config.mounts or [] if mount.type == "bind"]
    return [source for source in dict.fromkeys(map(clean, found)) if _may_be_elsewhere(source)]


def clean(source: str) -> str:
    """Return a path of the machine without detours; one of Windows is the laptop's business."""
    return os.path.normpath(source) if source.startswith("/") else source


def _may_be_elsewhere(source: str) -> bool:
    if is_windows_path(source):
        return True
    return source.startswith("/") and not any(
        source == root or source.startswith(f"{root}/") for root in _OF_THE_MACHINE
    )


def placed(points: Iterable[MountPoint], places: Mapping[str, str]) -> list[MountPoint]:
    """Return the points with the places of laptop folders as their sources.

    ``places`` goes by the client's path, which stays in ``folder``.
    """
    return [_placed(point, places) for point in points]


def _placed(point: MountPoint, places: Mapping[str, str]) -> MountPoint:
    folder = point.folder or point.source
    if point.type != "bind" or folder not in places:
        return point
    return msgspec.structs.replace(point, source=places[folder], folder=folder, create_source=False)


def wanted(points: Iterable[MountPoint]) -> list[str]:
    """Return the laptop's folders among a container's mount points."""
    return [point.folder for point in points if point.folder]
