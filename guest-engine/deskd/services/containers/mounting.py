"""Turning ``-v``, ``--mount``, ``--volumes-from`` and VOLUME into settled mount points."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import msgspec

from deskd.domain.container import DriverConfig, HostConfig, VolumeOptions
from deskd.domain.mount import MountStep, Propagation
from deskd.domain.state import ContainerRecord, MountPoint
from deskd.errors import InvalidArgument, SystemFailure
from deskd.kernel import mount_table
from deskd.services.containers import laptop_folders
from deskd.services.containers import mount_wishes as wishes
from deskd.services.containers.merging import check_mount_target
from deskd.services.volumes import Volumes

_CREATE_DIRECTORY_MODE = 0o755


async def settle(
    record: ContainerRecord,
    volumes: Volumes,
    find_record: Callable[[str], ContainerRecord],
    places: Mapping[str, str],
) -> list[MountPoint]:
    """Return the mount points of a new container, which claims its volumes; those that are not
    there are made.

    ``places`` are those of the folders that a laptop shares, by the client's path.
    For one target ``--mount`` beats ``-v``, that beats ``--volumes-from``, that beats VOLUME.
    Raises ``InvalidArgument`` for malformed or doubled ones.
    """
    config, host_config = record.config, record.host_config
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
    return [await _with_volume(point, record, volumes) for point in placed]


async def _with_volume(
    point: MountPoint, container: ContainerRecord, volumes: Volumes
) -> MountPoint:
    if point.type != "volume":
        return point
    if point.source:  # another container's
        volumes.claim(point.name, container.id)
        return point
    options = _volume_options(container.host_config, point)
    driver = options.driver_config or DriverConfig(name=container.host_config.volume_driver)
    record = await volumes.create(
        point.name,
        driver=driver.name,
        options=driver.options,
        labels=options.labels,
        claimant=container.id,
    )
    return msgspec.structs.replace(point, name=record.name, source=volumes.mountpoint(record.name))


def _volume_options(host_config: HostConfig, point: MountPoint) -> VolumeOptions:
    for mount in host_config.mounts or []:
        options = mount.volume_options
        if options is not None and os.path.normpath(mount.target) == point.destination:
            return options
    return VolumeOptions()


def mount_steps(
    points: list[MountPoint], volumes: Volumes, owner: tuple[int, int] = (0, 0)
) -> tuple[MountStep, ...]:
    """Return the binds of a start (the plan adds tmpfs mounts) whose volumes are held; missing
    sources are made and given to ``owner``.

    Raises ``InvalidArgument`` for a source that cannot be made.
    """
    return tuple(_step(point, volumes, owner) for point in points if point.type != "tmpfs")


def _step(point: MountPoint, volumes: Volumes, owner: tuple[int, int]) -> MountStep:
    # Where a volume is, is asked anew: the data root may have been moved.
    source = volumes.mountpoint(point.name) if point.type == "volume" else point.source
    if point.type == "volume" and not os.path.isdir(source):
        raise SystemFailure(
            f"error while mounting volume {point.name!r}: {source} is no directory: bring it back, "
            "or remove the volume"
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
        subpath=point.subpath,
        read_only=not point.read_write,
        recursive=not point.non_recursive,
        recursive_read_only=point.recursive_read_only,
        propagation=propagation,
    )


def _check_shared(source: str) -> None:
    """Raise ``InvalidArgument`` where mounts of a container could not reach the machine."""
    place, shared = "", False
    wanted = os.path.realpath(source) + "/"
    for mounted in mount_table.read():
        point = mounted.target.rstrip("/") + "/"
        if wanted.startswith(point) and len(point) >= len(place):
            place, shared = point, mounted.shared
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
