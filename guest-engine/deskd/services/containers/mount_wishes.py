"""Reading ``-v``, ``--mount`` and ``--volumes-from``: each becomes a mount point or a refusal.

The texts of the refusals are those that Docker's users know.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from functools import partial

import msgspec

from deskd.domain.container import Mount
from deskd.domain.state import ContainerRecord, MountPoint
from deskd.errors import InvalidArgument, NotFound
from deskd.services.containers.laptop_folders import clean, is_windows_path, split_bind
from deskd.services.containers.merging import check_mount_target, volume_target
from deskd.services.volumes import check_volume_name

_PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_LABEL_WORDS = ("z", "Z")  # SELinux, which this engine leaves alone
_CONSISTENCY_WORDS = ("consistent", "cached", "delegated", "default")  # of Docker Desktop


def from_container(word: str, find_record: Callable[[str], ContainerRecord]) -> list[MountPoint]:
    """Return the mount points of ``--volumes-from NAME[:MODE]``."""
    name, _, mode = word.partition(":")
    if not name:
        raise InvalidArgument("volumes-from specification cannot be an empty string")
    if mode not in ("", "ro", "rw", *_LABEL_WORDS):
        raise InvalidArgument(f"invalid mode for volumes-from: {mode}")
    try:
        found = find_record(name)
    except NotFound as error:
        # Not "not found": clients would take that for the image and pull it.
        raise InvalidArgument(f"No such container: {name}") from error
    return [
        msgspec.structs.replace(
            point,
            read_write=point.read_write and mode != "ro",
            copy_up=False,
            mode="" if point.type == "volume" else point.mode,
        )
        for point in found.mounts
    ]


def anonymous_volume(target: str) -> MountPoint:
    """Return the mount point of a VOLUME or of ``-v /path``."""
    return MountPoint(
        type="volume",
        source="",
        destination=volume_target(target),
        driver="local",
        copy_up=True,
        anonymous=True,
    )


def parse_bind(text: str) -> MountPoint:
    """Read ``SOURCE:TARGET[:MODE]``, or a target alone."""
    parts = split_bind(text)
    if len(parts) > 3 or not all(parts[:2]):
        raise InvalidArgument(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return msgspec.structs.replace(anonymous_volume(parts[0]), mode="z")
    source, target = parts[0], check_mount_target(parts[1])
    word = parts[2] if len(parts) == 3 else ""
    is_path = source.startswith("/") or is_windows_path(source)
    mode = _Mode(text, word, bind=is_path)
    if is_path:
        return MountPoint(
            type="bind",
            source=clean(source),
            destination=target,
            mode=word,
            read_write=not mode.read_only,
            propagation=mode.propagation or "rprivate",
            create_source=True,
            recursive_read_only=mode.read_only,
        )
    check_volume_name(source)
    return MountPoint(
        type="volume",
        source="",
        name=source,
        destination=target,
        driver="local",
        mode=word or "z",
        read_write=not mode.read_only,
        copy_up=not mode.no_copy,
    )


class _Mode:
    """The comma-separated third part of ``-v``: at most one word of each kind."""

    def __init__(self, text: str, mode: str, *, bind: bool) -> None:
        self.read_only = False
        self.no_copy = False
        self.propagation = ""
        seen: set[str] = set()
        for word in mode.split(",") if mode else ():
            kind = self._take(word, bind=bind)
            if not kind or kind in seen:
                raise InvalidArgument(f'invalid mode: {mode} in the volume "{text}"')
            seen.add(kind)

    def _take(self, word: str, *, bind: bool) -> str:
        """Take a word; return what kind it is, ``""`` for one that cannot be here."""
        if word in ("ro", "rw"):
            self.read_only = word == "ro"
            return "access"
        if word == "nocopy" and not bind:
            self.no_copy = True
            return "copy"
        if word in _PROPAGATIONS and bind:
            self.propagation = word
            return "propagation"
        if word in _LABEL_WORDS:
            return "label"
        return "consistency" if word in _CONSISTENCY_WORDS else ""


def parse_mount(mount: Mount, shared: Collection[str] = ()) -> MountPoint:
    """Read one entry of ``--mount``; ``shared`` are the sources that a laptop has."""
    readers: dict[str, Callable[[Mount, str], MountPoint]] = {
        "bind": partial(_bind, shared),
        "volume": _volume,
        "tmpfs": _tmpfs,
    }
    if mount.type not in readers:
        raise _invalid(mount, "mount type unknown; use bind, volume or tmpfs")
    if not mount.target:
        raise _invalid(mount, "field Target must not be empty")
    for name, kind, options in (
        ("BindOptions", "bind", mount.bind_options),
        ("VolumeOptions", "volume", mount.volume_options),
        ("TmpfsOptions", "tmpfs", mount.tmpfs_options),
    ):
        if options is not None and kind != mount.type:
            raise _invalid(mount, f"field {name} must not be specified")
    try:
        target = check_mount_target(mount.target)
    except InvalidArgument as error:
        raise _invalid(mount, str(error)) from error
    return readers[mount.type](mount, target)


def _invalid(mount: Mount, reason: str) -> InvalidArgument:
    return InvalidArgument(f'invalid mount config for type "{mount.type[:40]}": {reason}')


def _bind(shared: Collection[str], mount: Mount, target: str) -> MountPoint:
    if not mount.source:
        raise _invalid(mount, "field Source must not be empty")
    is_shared = clean(mount.source) in shared
    if not is_shared and not mount.source.startswith("/"):
        raise _invalid(mount, f"invalid mount path: '{mount.source}' mount path must be absolute")
    options = mount.bind_options
    create = bool(options and options.create_mountpoint)
    if not create and not is_shared and not os.path.exists(mount.source):
        raise _invalid(mount, f"bind source path does not exist: {mount.source}")
    propagation = (options.propagation if options else "") or "rprivate"
    if propagation not in _PROPAGATIONS:
        raise _invalid(mount, f"invalid propagation mode: {propagation}")
    forced = bool(options and options.read_only_force_recursive)
    if forced:
        _check_forced_read_only(mount)
    only_this = bool(options and options.read_only_non_recursive)
    return MountPoint(
        type="bind",
        source=clean(mount.source),
        destination=target,
        read_write=not mount.read_only,
        propagation=propagation,
        create_source=create,
        non_recursive=bool(options and options.non_recursive),
        recursive_read_only=mount.read_only and not only_this,
    )


def _check_forced_read_only(mount: Mount) -> None:
    options = mount.bind_options
    if not mount.read_only:
        raise _invalid(mount, "BindOptions.ReadOnlyForceRecursive requires ReadOnly")
    if options and (options.non_recursive or options.read_only_non_recursive):
        raise _invalid(
            mount,
            "BindOptions.ReadOnlyForceRecursive cannot go with NonRecursive or "
            "ReadOnlyNonRecursive",
        )
    if options and options.propagation not in ("", "rprivate"):
        raise _invalid(mount, "BindOptions.ReadOnlyForceRecursive requires Propagation rprivate")


def _volume(mount: Mount, target: str) -> MountPoint:
    if mount.source:
        check_volume_name(mount.source)
    options = mount.volume_options
    subpath = options.subpath if options else ""
    if subpath and not mount.source:
        raise _invalid(mount, "subpath must not be set with an anonymous volume")
    if subpath and (subpath.startswith("/") or ".." in subpath.split("/")):
        raise _invalid(mount, "subpath must be a relative path within the volume")
    return MountPoint(
        type="volume",
        source="",
        name=mount.source,
        destination=target,
        driver="local",
        mode="z",
        read_write=not mount.read_only,
        copy_up=not (options and options.no_copy),
        subpath=subpath,
        anonymous=not mount.source,
    )


def _tmpfs(mount: Mount, target: str) -> MountPoint:
    if mount.source:
        raise _invalid(mount, "field Source must not be specified")
    options = mount.tmpfs_options
    if options and options.size_bytes < 0:
        raise _invalid(mount, f"invalid tmpfs size: {options.size_bytes}")
    for option in (options.options if options else None) or ():
        if not option or len(option) > 2:
            raise _invalid(mount, "an entry of TmpfsOptions.Options has a name and perhaps a value")
    return MountPoint(type="tmpfs", source="", destination=target, read_write=not mount.read_only)
