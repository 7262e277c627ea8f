"""What a container may do: capabilities, security options, hidden paths, devices.

Pure rules after Docker's documented behaviour; only ``device_nodes`` looks at the machine.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from deskd.domain.container import HostConfig
from deskd.errors import InvalidArgument
from deskd.kernel.apparmor import DEFAULT_PROFILE, UNCONFINED
from deskd.kernel.capability_names import CAPABILITIES, DEFAULT_CAPABILITIES, NUMBERS
from deskd.kernel.cgroup.limits import DeviceRule
from deskd.record import Record
from deskd.runtime.plan import DeviceNode

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

DEFAULT_DEVICES = (
    DeviceNode("/dev/null", "c", 1, 3),
    DeviceNode("/dev/zero", "c", 1, 5),
    DeviceNode("/dev/full", "c", 1, 7),
    DeviceNode("/dev/random", "c", 1, 8),
    DeviceNode("/dev/urandom", "c", 1, 9),
    DeviceNode("/dev/tty", "c", 5, 0),
)

DEFAULT_DEVICE_RULES = (
    DeviceRule("c", None, None, "m"),
    DeviceRule("b", None, None, "m"),
    *(DeviceRule("c", node.major, node.minor, "rwm") for node in DEFAULT_DEVICES),
    DeviceRule("c", 5, 1, "rwm"),  # /dev/console
    DeviceRule("c", 5, 2, "rwm"),  # /dev/ptmx
    DeviceRule("c", 136, None, "rwm"),  # /dev/pts/*
)


class SecurityOptions(Record):
    """``--security-opt`` read: ``seccomp`` is ``""`` (unconfined), ``"default"`` or a profile.
    ``apparmor`` names the profile wherever the kernel has AppArmor."""

    seccomp: str = "default"
    no_new_privileges: bool = False
    apparmor: str = DEFAULT_PROFILE


def security_options(options: Sequence[str], *, privileged: bool) -> SecurityOptions:
    """Read ``HostConfig.SecurityOpt``. Raises ``InvalidArgument`` for an unknown option."""
    seccomp, no_new_privileges = "" if privileged else "default", False
    apparmor = ""
    for option in options:
        name, separator, value = option.partition("=")
        if not separator:
            name, separator, value = option.partition(":")
        if name == "no-new-privileges":
            if value not in ("", "true", "false"):
                raise InvalidArgument(f"invalid --security-opt {option!r}: use true or false")
            no_new_privileges = value != "false"
        elif name == "seccomp":
            seccomp = {"unconfined": "", "builtin": "default"}.get(value, value)
        elif name == "apparmor":
            if not value.isprintable() or " " in value:
                raise InvalidArgument(f"invalid --security-opt {option[:200]!r}: name a profile")
            apparmor = value
        elif option not in ("disable", "systempaths=unconfined") and name != "label":
            raise InvalidArgument(f"invalid --security-opt: {option!r}")
    # As Docker: a privileged container is unconfined, whatever was asked for.
    apparmor = UNCONFINED if privileged else apparmor or DEFAULT_PROFILE
    return SecurityOptions(seccomp, no_new_privileges, apparmor)


def capability_set(
    add: Sequence[str], drop: Sequence[str], *, privileged: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the capabilities to have and those of them that were asked for by name."""
    if privileged:
        return CAPABILITIES, ()
    added, dropped = _names(add, "CapAdd"), _names(drop, "CapDrop")
    if "ALL" in added:
        wanted = [name for name in CAPABILITIES if name not in dropped]
        return tuple(wanted), ()
    base = () if "ALL" in dropped else DEFAULT_CAPABILITIES
    wanted = [name for name in base if name not in dropped]
    wanted += [name for name in added if name not in wanted]
    return tuple(wanted), tuple(added)


def _names(values: Sequence[str], field: str) -> list[str]:
    names = []
    for value in values:
        name = value.strip().upper()
        if name != "ALL" and not name.startswith("CAP_"):
            name = f"CAP_{name}"
        if name != "ALL" and name not in NUMBERS:
            raise InvalidArgument(f'invalid {field}: unknown capability: "{name}"')
        names.append(name)
    return names


def hidden_paths(host: HostConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the masked and the read-only paths; a client's empty list means none."""
    if host.privileged:
        return (), ()
    unconfined = "systempaths=unconfined" in (host.security_opt or ())
    masked = MASKED_PATHS if host.masked_paths is None else tuple(host.masked_paths)
    read_only = READ_ONLY_PATHS if host.readonly_paths is None else tuple(host.readonly_paths)
    return ((), ()) if unconfined else (masked, read_only)


def device_nodes(host: HostConfig) -> tuple[DeviceNode, ...]:
    """List the nodes of the container's /dev: Docker's six, those of ``--device``, or all of the
    machine's for a privileged container."""
    nodes = {node.path: node for node in DEFAULT_DEVICES}
    if host.privileged:
        nodes |= {node.path: node for node in _below("/dev", "/dev")}
    for mapping in host.devices or ():
        inside = mapping.path_in_container or mapping.path_on_host
        nodes |= {node.path: node for node in _mapped(mapping.path_on_host, inside)}
    return tuple(nodes.values())


def device_rules(host: HostConfig) -> tuple[DeviceRule, ...] | None:
    """List what the device cgroup allows; ``None`` for a privileged container: everything."""
    if host.privileged:
        return None
    rules = list(DEFAULT_DEVICE_RULES)
    for mapping in host.devices or ():
        access = mapping.cgroup_permissions or "rwm"
        if not set(access) <= set("rwm"):
            raise InvalidArgument(f"invalid device permissions {access!r}: use r, w and m")
        rules += [
            DeviceRule(node.kind, node.major, node.minor, access)
            for node in _mapped(mapping.path_on_host, mapping.path_on_host)
        ]
    rules += [_parse_rule(text) for text in host.device_cgroup_rules or ()]
    return tuple(rules)


def _parse_rule(text: str) -> DeviceRule:
    try:
        kind, numbers, access = text.split()
        major, minor = numbers.split(":")
        if kind not in ("a", "b", "c") or not set(access) <= set("rwm"):
            raise ValueError(text)
        return DeviceRule(
            kind,
            None if major == "*" else int(major),
            None if minor == "*" else int(minor),
            access,
        )
    except ValueError:
        raise InvalidArgument(
            f"invalid device cgroup rule {text!r}: write it as in 'c 42:* rwm'"
        ) from None


def _mapped(outside: str, inside: str) -> list[DeviceNode]:
    try:
        if os.path.isdir(outside):
            found = _below(outside, inside)
        else:
            node = _node(outside, inside)
            found = [node] if node else []
    except OSError as error:
        raise InvalidArgument(
            f"error gathering device information while adding custom device "
            f'"{outside}": {(error.strerror or str(error)).lower()}'
        ) from error
    if not found:
        raise InvalidArgument(
            f'error gathering device information while adding custom device "{outside}": '
            "not a device node"
        )
    return found


def _node(outside: str, inside: str) -> DeviceNode | None:
    info = os.stat(outside)
    kind = "c" if stat.S_ISCHR(info.st_mode) else "b" if stat.S_ISBLK(info.st_mode) else ""
    if not kind:
        return None
    return DeviceNode(
        inside,
        kind,
        os.major(info.st_rdev),
        os.minor(info.st_rdev),
        stat.S_IMODE(info.st_mode),
        info.st_uid,
        info.st_gid,
        outside,
    )


_OWN_DEV = frozenset(("pts", "shm", "fd", "mqueue", "console", "ptmx", ".lxc", ".lxd-mounts"))


def _below(outside: str, inside: str) -> list[DeviceNode]:
    nodes = []
    for entry in sorted(os.scandir(outside), key=lambda item: item.name):
        path = os.path.join(inside, entry.name)
        if outside == "/dev" and entry.name in _OWN_DEV:
            continue
        if entry.is_dir(follow_symlinks=False):
            nodes += _below(entry.path, path)
        elif not entry.is_symlink() and (node := _node(entry.path, path)):
            nodes.append(node)
    return nodes
