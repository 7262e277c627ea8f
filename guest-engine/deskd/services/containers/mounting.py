"""Turning ``-v``, ``--mount``, ``--volumes-from`` and VOLUME into settled mount points."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import msgspec

from deskd.domain.container import ContainerConfig, HostConfig, Mount
from deskd.domain.mount import MountStep, Propagation
from deskd.domain.state import ContainerRecord, MountPoint
from deskd.errors import InvalidArgument, Unsupported
from deskd.services.containers.merging import check_mount_target
from deskd.services.volumes import Volumes

_PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_IGNORED_WORDS = ("z", "Z", "consistent", "cached", "delegated")  # SELinux and Docker Desktop words
_CREATE_DIRECTORY_MODE = 0o755
_ESCAPE = re.compile(r"\\([0-7]{3})")  # a blank in /proc/self/mountinfo, see proc(5)


def settle(
    config: ContainerConfig,
    host_config: HostConfig,
    volumes: Volumes,
    find_record: Callable[[str], ContainerRecord],
) -> list[MountPoint]:
    """Return the mount points of a new container; named volumes are made on demand.

    For one target ``--mount`` beats ``-v``, that beats ``--volumes-from``, that beats VOLUME.
    Raises ``InvalidArgument`` for malformed or doubled ones.
    """
    points: dict[str, MountPoint] = {}
    for target in config.volumes or {}:
        clean = check_mount_target(target)
        points[clean] = MountPoint(
            type="volume", source="", destination=clean, driver="local", copy_up=True,
            anonymous=True,
        )  # fmt: skip
    for word in host_config.volumes_from or []:
        for point in _from_container(word, find_record):
            points[point.destination] = point
    given: set[str] = set()
    for point in [
        *(_parse_bind(text) for text in host_config.binds or []),
        *(_parse_mount(mount) for mount in host_config.mounts or []),
    ]:
        if point.destination in given:
            raise InvalidArgument(f"Duplicate mount point: {point.destination}")
        given.add(point.destination)
        points[point.destination] = point
    for target in host_config.tmpfs or {}:
        points.pop(check_mount_target(target), None)
    return [_with_volume(point, host_config, volumes) for point in points.values()]


def _with_volume(point: MountPoint, host_config: HostConfig, volumes: Volumes) -> MountPoint:
    if point.type != "volume" or point.source:
        return point
    labels = _volume_labels(host_config, point)
    record, created = volumes.create(point.name, labels=labels)
    return msgspec.structs.replace(
        point,
        name=record.name,
        source=volumes.mountpoint(record.name),
        copy_up=point.copy_up and (created or not _has_content(volumes.mountpoint(record.name))),
        anonymous=record.anonymous,
    )


def _has_content(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return False


def _volume_labels(host_config: HostConfig, point: MountPoint) -> dict[str, str]:
    for mount in host_config.mounts or []:
        options = mount.volume_options
        if options is not None and os.path.normpath(mount.target) == point.destination:
            return options.labels or {}
    return {}


def _from_container(word: str, find_record: Callable[[str], ContainerRecord]) -> list[MountPoint]:
    name, _, mode = word.partition(":")
    if mode not in ("", "ro", "rw", "z", "Z"):
        raise InvalidArgument(f"invalid mode for volumes-from: {mode}")
    return [
        msgspec.structs.replace(point, read_write=point.read_write and mode != "ro", copy_up=False)
        for point in find_record(name).mounts
    ]


def _parse_bind(text: str) -> MountPoint:
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InvalidArgument(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        target = check_mount_target(parts[0])
        return MountPoint(
            type="volume", source="", destination=target, driver="local", copy_up=True,
            anonymous=True,
        )  # fmt: skip
    source, target = parts[0], check_mount_target(parts[1])
    words = parts[2].split(",") if len(parts) == 3 else []
    mode = _Mode(text, words)
    if source.startswith("/"):
        return MountPoint(
            type="bind",
            source=os.path.normpath(source),
            destination=target,
            mode=parts[2] if len(parts) == 3 else "",
            read_write=not mode.read_only,
            propagation=mode.propagation or "rprivate",
            create_source=True,
        )
    if source.startswith(".") or "/" in source:
        raise InvalidArgument(
            f'"{source}" includes invalid characters for a local volume name; to mount a host '
            "directory use its absolute path"
        )
    return MountPoint(
        type="volume",
        source="",
        name=source,
        destination=target,
        driver="local",
        mode=parts[2] if len(parts) == 3 else "z",
        read_write=not mode.read_only,
        copy_up=not mode.no_copy,
    )


class _Mode:
    """The comma-separated third part of ``-v``."""

    def __init__(self, text: str, words: list[str]) -> None:
        self.read_only = False
        self.no_copy = False
        self.propagation = ""
        for word in words:
            if word in ("ro", "rw"):
                self.read_only = word == "ro"
            elif word == "nocopy":
                self.no_copy = True
            elif word in _PROPAGATIONS:
                self.propagation = word
            elif word not in _IGNORED_WORDS:
                raise InvalidArgument(f'invalid mode: {word} in the volume "{text}"')


def _parse_mount(mount: Mount) -> MountPoint:
    target = check_mount_target(mount.target)
    if mount.type == "bind":
        return _bind_mount(mount, target)
    if mount.type == "volume":
        options = mount.volume_options
        if options is not None and options.driver_config is not None:
            driver = options.driver_config
            if driver.name not in ("", "local") or driver.options:
                raise Unsupported(
                    f"the volume for {target} asks for a driver or driver options; "
                    "only plain volumes of the driver local are supported"
                )
        return MountPoint(
            type="volume",
            source="",
            name=mount.source,
            destination=target,
            driver="local",
            mode="z",
            read_write=not mount.read_only,
            copy_up=not (options and options.no_copy),
            subpath=options.subpath if options else "",
            anonymous=not mount.source,
        )
    if mount.type == "tmpfs":
        if mount.source:
            raise InvalidArgument(
                f'invalid mount config for type "tmpfs": source must not be given ({target})'
            )
        return MountPoint(
            type="tmpfs", source="", destination=target, read_write=not mount.read_only
        )
    raise InvalidArgument(f"mount type unknown: {mount.type!r}; use bind, volume or tmpfs")


def _bind_mount(mount: Mount, target: str) -> MountPoint:
    if not mount.source.startswith("/"):
        raise InvalidArgument(
            f"invalid mount config for type \"bind\": invalid mount path: '{mount.source}' mount "
            "path must be absolute"
        )
    options = mount.bind_options
    create = bool(options and options.create_mountpoint)
    if not create and not os.path.exists(mount.source):
        raise InvalidArgument(
            f'invalid mount config for type "bind": bind source path does not exist: {mount.source}'
        )
    propagation = (options.propagation if options else "") or "rprivate"
    if propagation not in _PROPAGATIONS:
        raise InvalidArgument(f"invalid propagation: {propagation}")
    return MountPoint(
        type="bind",
        source=os.path.normpath(mount.source),
        destination=target,
        read_write=not mount.read_only,
        propagation=propagation,
        create_source=create,
        non_recursive=bool(options and options.non_recursive),
        recursive_read_only=bool(options and options.read_only_force_recursive),
    )


def mount_steps(points: list[MountPoint]) -> tuple[MountStep, ...]:
    """Return the binds of a start (the plan adds tmpfs mounts); missing sources are made.

    Raises ``InvalidArgument`` for a source that cannot be made or a missing subpath.
    """
    return tuple(_step(point) for point in points if point.type != "tmpfs")


def _step(point: MountPoint) -> MountStep:
    source = point.source
    if point.subpath:
        source = _inside(point.source, point.subpath)
    if point.create_source and not os.path.lexists(source):
        try:
            os.makedirs(source, mode=_CREATE_DIRECTORY_MODE)
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


def _inside(root: str, subpath: str) -> str:
    """Return an existing path below a volume; a link may not lead out of it."""
    wanted = os.path.realpath(os.path.join(root, subpath))
    if os.path.isabs(subpath) or not (wanted + "/").startswith(os.path.realpath(root) + "/"):
        raise InvalidArgument(f"the subpath {subpath!r} leads out of its volume")
    if not os.path.lexists(wanted):
        raise InvalidArgument(f"cannot access path {wanted}: no such file or directory")
    return wanted
