"""The jobs that mount and unmount a volume of the driver ``local`` with options.

They work in the engine's own mount namespace. In a process of their own, because a server that does
not answer holds a mount(2) for minutes, and only SIGKILL ends that.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from deskd import errors
from deskd.domain.volume_options import without_secrets, words_of
from deskd.kernel import mount as sys

_KERNEL_OPTIONS = {
    "btrfs": "CONFIG_BTRFS_FS",
    "cifs": "CONFIG_CIFS",
    "ext4": "CONFIG_EXT4_FS",
    "nfs": "CONFIG_NFS_FS",
    "nfs4": "CONFIG_NFS_V4",
    "overlay": "CONFIG_OVERLAY_FS",
    "smb3": "CONFIG_CIFS",
    "tmpfs": "CONFIG_TMPFS",
    "xfs": "CONFIG_XFS_FS",
}
_ADDRESS_NAMES = {
    "cifs": ("addr", "ip"),
    "nfs": ("addr",),
    "nfs4": ("addr",),
    "smb3": ("addr", "ip"),
}
_ATTRIBUTES = {
    sys.MS_RDONLY: sys.MOUNT_ATTR_RDONLY,
    sys.MS_NOSUID: sys.MOUNT_ATTR_NOSUID,
    sys.MS_NODEV: sys.MOUNT_ATTR_NODEV,
    sys.MS_NOEXEC: sys.MOUNT_ATTR_NOEXEC,
}


def mount(arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Mount ``device`` of the type ``kind`` on ``target`` with mount(8)'s ``options``.

    Raises ``SystemFailure``, and ``Unsupported`` where the kernel has no such file system.
    """
    del fds
    device, kind, target = arguments["device"], arguments["kind"], arguments["target"]
    begin = f"error while mounting volume '{target}': "
    if not device:
        raise errors.SystemFailure(f"{begin}missing device in volume options")
    options = _with_address(kind, device, words_of(arguments["options"]), begin)
    flags, propagation, rest = _sorted(options)
    data = ",".join(rest)
    try:
        sys.mount(device, target, kind, flags, data)
    except OSError as error:
        shown = f", flags: {flags:#x}" if flags else ""
        shown += f", data: {without_secrets(data)}" if data else ""
        text = f"{begin}failed to mount local volume: mount {device}:{target}{shown}: "
        raise _failure(text, error, kind, flags) from error
    try:
        _finish(target, flags, propagation)
    except OSError as error:
        sys.umount2(target, sys.MNT_DETACH)
        raise _failure(f"{begin}failed to mount local volume: ", error, kind, flags) from error


def unmount(arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Take away what is mounted on ``target``; a file that is still open there stays readable."""
    del fds
    try:
        sys.umount2(arguments["target"], sys.MNT_DETACH | sys.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EINVAL:  # it was unmounted meanwhile
            raise


def _sorted(words: Sequence[str]) -> tuple[int, int, list[str]]:
    """Sort options into flags, propagation and what is the file system's own."""
    flags, propagation, rest = 0, 0, []
    for word in words:
        if word in sys.WORDS:
            bits, sets = sys.WORDS[word]
            flags = flags | bits if sets else flags & ~bits
        elif word in sys.PROPAGATION_WORDS:
            propagation = sys.PROPAGATION_WORDS[word]
        else:
            rest.append(word)
    return flags, propagation, rest


def _finish(target: str, flags: int, propagation: int) -> None:
    """Do what the first mount(2) cannot: a bind takes its flags, and any mount its propagation,
    afterwards."""
    if propagation:
        sys.mount("", target, "", propagation)
    attributes = sum(attribute for flag, attribute in _ATTRIBUTES.items() if flags & flag)
    if flags & sys.MS_BIND and attributes:
        place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sys.mount_setattr(place, set_flags=attributes, recursive=bool(flags & sys.MS_REC))
        finally:
            os.close(place)


def _with_address(kind: str, device: str, words: list[str], begin: str) -> list[str]:
    """Give the kernel the server's address: it does not look names up, mount(8)'s helpers do."""
    names = _ADDRESS_NAMES.get(kind, ())
    for place, word in enumerate(words):
        name, _, host = word.partition("=")
        if name in names and host:
            return [*words[:place], f"{name}={_address_of(host, begin)}", *words[place + 1 :]]
    host = _host_of(kind, device)
    return [*words, f"addr={_address_of(host, begin)}"] if names and host else words


def _host_of(kind: str, device: str) -> str:
    """Return the server that a device names: ``HOST:/path`` (NFS) or ``//HOST/share`` (SMB)."""
    if kind.startswith("nfs"):
        return device.partition(":/")[0].strip("[]")
    return device.lstrip("/").partition("/")[0] if device.startswith("//") else ""


def _address_of(host: str, begin: str) -> str:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
            return host
        except OSError:
            continue
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", "") or "it is no name of a host"
        raise errors.SystemFailure(
            f"{begin}error resolving passed in network volume address: lookup {host}: {reason}"
        ) from error
    return str(found[0][4][0])


def _failure(text: str, error: OSError, kind: str, flags: int) -> errors.DeskdError:
    reason = (error.strerror or str(error)).lower()
    if error.errno != errno.ENODEV:
        return errors.SystemFailure(f"{text}{reason}")
    if kind in ("", "none", "bind") and not flags & sys.MS_BIND:
        hint = "for a directory of the machine write o=bind"
        return errors.SystemFailure(f"{text}{reason} ({hint})")
    option = _KERNEL_OPTIONS.get(kind)
    lacks = f"the kernel lacks {option}" if option else f"the kernel has no file system {kind!r}"
    return errors.Unsupported(f"{text}{reason} ({lacks})")
