"""Turning ``-v``, ``--mount``, ``--volumes-from`` and VOLUME into settled mount points."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

import msgspec

from deskd.domain.container import ContainerConfig, DriverConfig, HostConfig, VolumeOptions
from deskd.domain.mount import MountStep, Propagation
from deskd.domain.state import ContainerRecord, MountPoint
from deskd.errors import InvalidArgument
from deskd.services.containers import laptop_folders
from deskd.services.containers import mount_wishes as wishes
from deskd.services.containers.merging import check_mount_target
from deskd.services.volumes import Volumes

_CREATE_DIRECTORY_MODE = 0o755
_ESCAPE = re.compile(r"\\([0-7]{3})")  # a blank in /proc/self/mountinfo, see proc(5)


def settle(
    config: ContainerConfig,
    host_config: HostConfig,
    volumes: Volumes,
    find_record: Callable[[str], ContainerRecord],
    places: Mapping[str, str],
) -> list[MountPoint]:
    """Return the mount points of a new container; named volumes are made on demand.

    ``places`` are those of the folders that a laptop shares, by the client's path.
    For one target ``--mount`` beats ``-v``, that beats ``--volumes-from``, that beats VOLUME.
    Raises ``InvalidArgument`` for malformed or doubled ones.
    """
    points: dict[str, MountPoint] = {}
    for target in config.volumes or {}:
        point = wishes.anonymous_volume(target)
        points[point.destination] = point
    for word in host_config.volumes_from or []:
        for point in wishes.from_container(word, find_record):
            points[point.destination] = point
    given: set[str] = set()
    for point in [
        *(wishes.parse_bind(text) for text in host_config.binds or []),
        *(wishes.parse_mount(mount, places) for mount in host_config.mounts or []),
    ]:
        if point.destination in given:
            raise InvalidArgument(f"Duplicate mount point: {point.destination}")
        given.add(point.destination)
        points[point.destination] = point
    for target in host_config.tmpfs or {}:
        clean = check_mount_target(target)
        if clean in given:
            raise InvalidArgument(f"Duplicate mount point: {clean}")
        points.pop(clean, None)
    placed = laptop_folders.placed(points.values(), places)
    for point in placed:
        if point.type == "bind" and not point.source.startswith("/"):
            raise InvalidArgument(
                f"invalid volume specification: '{point.source}:{point.destination}' names a path "
                "of Windows, and no such computer shares its folders with this machine"
            )
    return [_with_volume(point, host_config, volumes) for point in placed]


def _with_volume(point: MountPoint, host_config: HostConfig, volumes: Volumes) -> MountPoint:
    if point.type != "volume" or point.source:
        return point
    options = _volume_options(host_config, point)
    driver = options.driver_config or DriverConfig(name=host_config.volume_driver)
    record, created = volumes.create(
        point.name, driver=driver.name, options=driver.options, labels=options.labels
    )
    source = record.device or volumes.mountpoint(record.name)
    return msgspec.structs.replace(
        point,
        name=record.name,
        source=source,
        read_write=point.read_write and not record.read_only,
        recursive_read_only=record.read_only,
        copy_up=point.copy_up and _wants_content(source, new=created and not record.device),
        anonymous=record.anonymous,
    )


def _wants_content(path: str, *, new: bool) -> bool:
    """Tell whether a volume is to be filled with what the image has in its place."""
    if new:
        return True
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except (FileNotFoundError, NotADirectoryError):
        return False


def _volume_options(host_config: HostConfig, point: MountPoint) -> VolumeOptions:
    for mount in host_config.mounts or []:
        options = mount.volume_options
        if options is not None and os.path.normpath(mount.target) == point.destination:
            return options
    return VolumeOptions()


def mount_steps(points: list[MountPoint], owner: tuple[int, int] = (0, 0)) -> tuple[MountStep, ...]:
    """Return the binds of a start (the plan adds tmpfs mounts); missing sources are made and
    given to ``owner``.

    Raises ``InvalidArgument`` for a source that cannot be made or a missing subpath.
    """
    return tuple(_step(point, owner) for point in points if point.type != "tmpfs")


def _step(point: MountPoint, owner: tuple[int, int]) -> MountStep:
    source = point.source
    if point.subpath:
        source = _inside(point.source, point.subpath)
    if point.type == "volume" and not os.path.isdir(point.source):
        raise InvalidArgument(
            f"failed to mount local volume {point.name}: {point.source} is no directory; make it "
            "first"
        )
    if point.create_source and not os.path.lexists(source):
        try:
            _make_directories(source, owner)
        except OSError as error:
            raise InvalidArgument(
                f"error while creating mount source path '{source}': {error.strerror}"
            ) from error
    if point.propagation in ("shared", "rshared"):
        _check_shared(source)
    propagation: Propagation = point.propagation or "rprivate"  # type: ignore[assignment]
    return MountStep(
        kind="bind",
        target=point.destination,
        source=source,
        read_only=not point.read_write,
        recursive=not point.non_recursive,
        recursive_read_only=point.recursive_read_only,
        propagation=propagation,
    )


def _check_shared(source: str) -> None:
    """Raise ``InvalidArgument`` where mounts of a container could not reach the machine."""
    place, shared = "", False
    wanted = os.path.realpath(source) + "/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.partition(" - ")[0].split()
            point = _ESCAPE.sub(lambda m: chr(int(m[1], 8)), fields[4]).rstrip("/") + "/"
            if wanted.startswith(point) and len(point) >= len(place):
                place, shared = point, any(word.startswith("shared:") for word in fields[6:])
    if not shared:
        raise InvalidArgument(
            f"path {source} is mounted on {place.rstrip('/') or '/'} but it is not a shared mount; "
            "make it one on the engine's machine with `mount --make-shared`"
        )


def _make_directories(path: str, owner: tuple[int, int]) -> None:
    """Make a directory and those above it that are missing, all for ``owner``."""
    parent = os.path.dirname(path)
    if not os.path.lexists(parent):
        _make_directories(parent, owner)
    os.mkdir(path, _CREATE_DIRECTORY_MODE)
    if owner != (0, 0):
        os.chown(path, *owner, follow_symlinks=False)


def _inside(root: str, subpath: str) -> str:
    """Return an existing path below a volume; a link may not lead out of it."""
    wanted = os.path.realpath(os.path.join(root, subpath))
    if os.path.isabs(subpath) or not (wanted + "/").startswith(os.path.realpath(root) + "/"):
        raise InvalidArgument(f"the subpath {subpath!r} leads out of its volume")
    if not os.path.lexists(wanted):
        raise InvalidArgument(f"cannot access path {wanted}: no such file or directory")
    return wanted
