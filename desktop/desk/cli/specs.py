"""Values of ``desk run``'s flags, parsed into what the Engine API takes: ports, mounts, devices…

The forms are those of Docker's command line reference. Each function raises ``UsageError`` that
quotes the value.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from desk.cli.units import parse_size
from desk.errors import UsageError

JsonObject = dict[str, Any]

_PROTOCOLS = ("tcp", "udp", "sctp")
_WINDOWS_PATH = re.compile(r"[a-zA-Z]:[\\/]")


def _fields(text: str) -> list[str]:
    """Split at commas; quotes keep a comma in a field, as in CSV."""
    import csv

    return next(csv.reader([text]), [])


# --- ports --------------------------------------------------------------------------------------


class PortBinding(NamedTuple):
    """One publication: ``80/tcp`` on an address and a port (a range, or empty for any)."""

    container_port: str
    host_ip: str
    host_port: str


def parse_port_range(text: str, *, whole: str) -> tuple[int, int]:
    """Return first and last port of ``80`` or ``80-90``."""
    first, separator, last = text.partition("-")
    ports = (first, last if separator else first)
    if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports):
        raise UsageError(
            f"invalid port in {whole!r}: {text!r} is no port from 1 to 65535",
            hint="Write -p HOST_PORT:CONTAINER_PORT, such as -p 8080:80.",
        )
    low, high = int(ports[0]), int(ports[1])
    if high < low:
        raise UsageError(f"invalid port range in {whole!r}: {text} goes backwards")
    return low, high


def _protocol(text: str, whole: str) -> tuple[str, str]:
    ports, separator, protocol = text.partition("/")
    protocol = protocol.lower() if separator else "tcp"
    if protocol not in _PROTOCOLS:
        raise UsageError(
            f"invalid protocol {protocol!r} in {whole!r}", hint="It is tcp, udp or sctp."
        )
    return ports, protocol


def parse_publish(text: str) -> list[PortBinding]:
    """Parse ``[[IP:][HOST_PORT]:]PORT[/PROTOCOL]``, ports being single or ranges."""
    ports, protocol = _protocol(text, text)
    rest, _, container = ports.rpartition(":")
    ip, _, host = rest.rpartition(":")
    ip = ip.strip("[]") if ip.startswith("[") else ip
    low, high = parse_port_range(container, whole=text)
    if not host:
        return [PortBinding(f"{port}/{protocol}", ip, "") for port in range(low, high + 1)]
    host_low, host_high = parse_port_range(host, whole=text)
    if low == high:  # one port of the host's range
        return [PortBinding(f"{low}/{protocol}", ip, host)]
    if high - low != host_high - host_low:
        raise UsageError(f"invalid port ranges in {text!r}: they are not equally long")
    return [
        PortBinding(f"{port}/{protocol}", ip, str(host_low + port - low))
        for port in range(low, high + 1)
    ]


def parse_expose(text: str) -> list[str]:
    """Parse ``80``, ``80-90/udp`` into ``80/tcp`` …"""
    ports, protocol = _protocol(text, text)
    low, high = parse_port_range(ports, whole=text)
    return [f"{port}/{protocol}" for port in range(low, high + 1)]


# --- volumes and mounts -------------------------------------------------------------------------


class Volume(NamedTuple):
    """One ``-v``: ``source`` is empty for an anonymous volume, a path for a host folder."""

    source: str
    target: str
    options: str
    is_path: bool

    def bind(self) -> str:
        return ":".join(part for part in (self.source, self.target, self.options) if part)


def parse_volume(text: str) -> Volume:
    """Parse ``[SOURCE:]TARGET[:OPTIONS]``; relative and ``~`` sources become absolute."""
    drive, rest = "", text
    if _WINDOWS_PATH.match(text) and (sys.platform == "win32" or text.count(":") > 1):
        drive, rest = text[:2], text[2:]
    parts = rest.split(":")
    if len(parts) > 3 or not all(parts):
        raise UsageError(
            f"invalid volume {text!r}",
            hint="Write -v NAME:/path/in/container or -v /host/path:/path/in/container.",
        )
    if len(parts) == 1:
        source, target, options = "", drive + parts[0], ""
    else:
        source, target = drive + parts[0], parts[1]
        options = parts[2] if len(parts) > 2 else ""
    if not target.startswith("/"):
        raise UsageError(
            f"invalid volume {text!r}: {target!r} is not an absolute path in the container"
        )
    is_path = _is_path(source)
    return Volume(absolute_source(source) if is_path else source, target, options, is_path)


def _is_path(source: str) -> bool:
    return source.startswith(("/", ".", "~")) or bool(_WINDOWS_PATH.match(source))


def absolute_source(source: str) -> str:
    """Return a host path in full: ``~`` is the home directory, ``./x`` is relative to here."""
    if source.startswith("/") and sys.platform != "win32":
        return os.path.normpath(source)
    return str(Path(os.path.normpath(Path(source).expanduser().absolute())))


def _flag(text: str | None, key: str, whole: str) -> bool:
    if text is None or text.lower() in ("1", "true"):
        return True
    if text.lower() in ("0", "false"):
        return False
    raise UsageError(f"invalid value {text!r} for {key} in --mount {whole!r}")


def parse_mount(text: str) -> JsonObject:
    """Parse ``type=bind,source=…,target=…`` into the API's ``Mount``."""
    mount: JsonObject = {"Type": "volume"}
    bind: JsonObject = {}
    volume: JsonObject = {}
    tmpfs: JsonObject = {}
    for item in _fields(text):
        key, separator, value = item.partition("=")
        key = key.strip().lower()
        given = value if separator else None
        if key in ("readonly", "ro"):
            mount["ReadOnly"] = _flag(given, key, text)
        elif key == "volume-nocopy":
            volume["NoCopy"] = _flag(given, key, text)
        elif key == "bind-nonrecursive":
            bind["NonRecursive"] = _flag(given, key, text)
        elif not separator:
            raise UsageError(f"invalid field {item!r} in --mount {text!r}: it has no value")
        elif key == "bind-recursive":
            bind.update(_bind_recursive(value, text))
        else:
            _mount_field(key, value, mount, bind, volume, tmpfs, text)
    for name, options in (
        ("BindOptions", bind),
        ("VolumeOptions", volume),
        ("TmpfsOptions", tmpfs),
    ):
        if options:
            mount[name] = options
    _check_mount(mount, text)
    return mount


def _mount_field(
    key: str,
    value: str,
    mount: JsonObject,
    bind: JsonObject,
    volume: JsonObject,
    tmpfs: JsonObject,
    whole: str,
) -> None:
    if key == "type":
        mount["Type"] = value.lower()
    elif key in ("source", "src"):
        mount["Source"] = value
    elif key in ("target", "dst", "destination"):
        mount["Target"] = value
    elif key == "consistency":
        mount["Consistency"] = value.lower()
    elif key == "bind-propagation":
        bind["Propagation"] = value.lower()
    elif key == "volume-subpath":
        volume["Subpath"] = value
    elif key == "volume-driver":
        volume.setdefault("DriverConfig", {})["Name"] = value
    elif key == "volume-opt":
        name, _, option = value.partition("=")
        volume.setdefault("DriverConfig", {}).setdefault("Options", {})[name] = option
    elif key == "volume-label":
        name, _, label = value.partition("=")
        volume.setdefault("Labels", {})[name] = label
    elif key == "tmpfs-size":
        tmpfs["SizeBytes"] = parse_size(value, what="tmpfs-size")
    elif key == "tmpfs-mode":
        if not re.fullmatch(r"[0-7]+", value):
            raise UsageError(f"invalid tmpfs-mode {value!r} in --mount {whole!r}: write 1777")
        tmpfs["Mode"] = int(value, 8)
    else:
        raise UsageError(f"unknown field {key!r} in --mount {whole!r}")


def _bind_recursive(value: str, whole: str) -> JsonObject:
    choices: dict[str, JsonObject] = {
        "enabled": {},
        "disabled": {"NonRecursive": True},
        "writable": {"ReadOnlyNonRecursive": True},
        "readonly": {"ReadOnlyForceRecursive": True},
    }
    if value not in choices:
        raise UsageError(
            f"invalid bind-recursive {value!r} in --mount {whole!r}",
            hint="It is enabled, disabled, writable or readonly.",
        )
    return choices[value]


def _check_mount(mount: JsonObject, text: str) -> None:
    kind = mount["Type"]
    if kind not in ("bind", "volume", "tmpfs"):
        raise UsageError(
            f"invalid type {kind!r} in --mount {text!r}", hint="It is bind, volume or tmpfs."
        )
    if not mount.get("Target"):
        raise UsageError(f"--mount {text!r} names no target", hint="Add target=/path.")
    for name, owner in (("Bind", "bind"), ("Volume", "volume"), ("Tmpfs", "tmpfs")):
        if f"{name}Options" in mount and kind != owner:
            raise UsageError(f"--mount {text!r} mixes {owner} options with type {kind}")
    if kind == "bind":
        if not mount.get("Source"):
            raise UsageError(f"--mount {text!r} names no source", hint="Add source=/path.")
        mount["Source"] = absolute_source(mount["Source"])


# --- pairs, devices, limits ---------------------------------------------------------------------


def parse_pairs(items: Iterable[str], *, flag: str) -> dict[str, str]:
    """Parse ``KEY=VALUE`` flags; a key without a value gets an empty one."""
    pairs: dict[str, str] = {}
    for item in items:
        key, _, value = item.partition("=")
        if not key:
            raise UsageError(f"invalid value {item!r} for {flag}", hint="Write KEY=VALUE.")
        pairs[key] = value
    return pairs


def parse_env(items: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """Parse ``-e``: ``KEY=VALUE``, or ``KEY`` to pass on what this process has, if anything."""
    result: list[str] = []
    for item in items:
        key, separator, _ = item.partition("=")
        if not key:
            raise UsageError(f"invalid environment variable {item!r}", hint="Write NAME=value.")
        if separator:
            result.append(item)
        elif key in environ:
            result.append(f"{key}={environ[key]}")
    return result


def read_env_file(file: str, *, what: str = "--env-file") -> list[str]:
    """Return the ``KEY=VALUE`` and ``KEY`` lines of a file, without comments."""
    try:
        text = Path(file).expanduser().read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(f"cannot read {what} {file}: {reason}") from error
    result: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.lstrip()
        if not entry or entry.startswith("#"):
            continue
        key = entry.partition("=")[0]
        if not key or re.search(r"\s", key):
            raise UsageError(f"{file}, line {number}: {key!r} cannot name a variable")
        result.append(entry)
    return result


def parse_device(text: str) -> JsonObject:
    """Parse ``/dev/x[:/dev/y][:rwm]``."""
    parts = text.split(":")
    permissions = "rwm"
    if len(parts) > 1 and re.fullmatch(r"[rwm]+", parts[-1]):
        permissions = parts.pop()
    if not 1 <= len(parts) <= 2 or not all(part.startswith("/") for part in parts):
        raise UsageError(
            f"invalid device {text!r}", hint="Write /dev/x, /dev/x:/dev/y or /dev/x:/dev/y:rwm."
        )
    return {
        "PathOnHost": parts[0],
        "PathInContainer": parts[-1],
        "CgroupPermissions": permissions,
    }


def parse_ulimit(text: str) -> JsonObject:
    """Parse ``nofile=1024[:2048]``; -1 is unlimited."""
    name, _, limits = text.partition("=")
    soft, separator, hard = limits.partition(":")
    if not re.fullmatch(r"-1|\d+", soft) or (separator and not re.fullmatch(r"-1|\d+", hard)):
        raise UsageError(f"invalid ulimit {text!r}", hint="Write nofile=1024 or nofile=1024:2048.")
    values = int(soft), int(hard if separator else soft)
    if values[1] != -1 and not 0 <= values[0] <= values[1]:
        raise UsageError(f"invalid ulimit {text!r}: the soft limit is above the hard one")
    return {"Name": name, "Soft": values[0], "Hard": values[1]}


def parse_restart(text: str) -> JsonObject:
    """Parse ``no``, ``always``, ``unless-stopped``, ``on-failure[:COUNT]``."""
    name, separator, count = text.partition(":")
    if name not in ("no", "always", "unless-stopped", "on-failure", ""):
        raise UsageError(
            f"invalid restart policy {text!r}",
            hint="It is no, always, unless-stopped, on-failure or on-failure:COUNT.",
        )
    if separator and (name != "on-failure" or not count.isdecimal()):
        raise UsageError(f"invalid restart policy {text!r}: only on-failure takes a number")
    return {"Name": name or "no", "MaximumRetryCount": int(count or 0)}


def parse_throttle(text: str, *, bytes_: bool) -> JsonObject:
    """Parse ``/dev/x:RATE``; bytes a second may have a unit."""
    path, separator, rate = text.rpartition(":")
    if not separator or not path.startswith("/dev/"):
        raise UsageError(f"invalid device rate {text!r}", hint="Write /dev/sda:10mb.")
    if not bytes_ and not rate.isdecimal():
        raise UsageError(f"invalid device rate {text!r}: {rate!r} is no whole number")
    return {"Path": path, "Rate": parse_size(rate, what="rate") if bytes_ else int(rate)}


def parse_weight(text: str) -> JsonObject:
    """Parse ``/dev/x:WEIGHT``."""
    path, separator, weight = text.rpartition(":")
    if not separator or not weight.isdecimal() or not path.startswith("/dev/"):
        raise UsageError(f"invalid device weight {text!r}", hint="Write /dev/sda:500.")
    return {"Path": path, "Weight": int(weight)}


def parse_add_host(text: str) -> str:
    """Parse ``name:ip`` or ``name=ip`` into the API's ``name:ip``."""
    separator = "=" if "=" in text else ":"
    name, found, address = text.partition(separator)
    if not found or not name or not address:
        raise UsageError(f"invalid --add-host {text!r}", hint="Write NAME:ADDRESS.")
    return f"{name}:{address.strip('[]')}"


def parse_nano_cpus(text: str) -> int:
    """Parse ``1.5`` into billionths of a CPU."""
    from decimal import Decimal, InvalidOperation

    try:
        nano = Decimal(text) * 10**9
    except InvalidOperation:
        nano = Decimal(-1)
    if nano < 0 or nano != nano.to_integral_value():
        raise UsageError(f"invalid --cpus {text!r}", hint="Write a number such as 1.5.")
    return int(nano)


def parse_network(text: str) -> tuple[str, JsonObject]:
    """Parse ``NAME`` or ``name=NAME,alias=…,ip=…`` into a name and ``EndpointSettings``."""
    if "=" not in text:
        return text, {}
    endpoint: JsonObject = {}
    name = ""
    for item in _fields(text):
        key, _, value = item.partition("=")
        if key == "name":
            name = value
        elif key == "alias":
            endpoint.setdefault("Aliases", []).append(value)
        elif key in ("ip", "ip6"):
            field = "IPv4Address" if key == "ip" else "IPv6Address"
            endpoint.setdefault("IPAMConfig", {})[field] = value
        elif key == "mac-address":
            endpoint["MacAddress"] = value
        elif key == "link-local-ip":
            endpoint.setdefault("IPAMConfig", {}).setdefault("LinkLocalIPs", []).append(value)
        elif key == "driver-opt":
            option, _, setting = value.partition("=")
            endpoint.setdefault("DriverOpts", {})[option] = setting
        else:
            raise UsageError(f"unknown field {key!r} in --network {text!r}")
    if not name:
        raise UsageError(f"--network {text!r} names no network", hint="Add name=NETWORK.")
    return name, endpoint
