"""Values of ``desk run``'s flags, parsed into what the Engine API takes: ports, pairs, limits…

The forms are those of Docker's command line reference. Each function raises ``UsageError`` that
quotes the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from desk.errors import UsageError

JsonObject = dict[str, Any]

_PROTOCOLS = ("tcp", "udp", "sctp")


def fields(text: str) -> list[str]:
    """Split a flag's value at commas; quotes keep a comma in a field, as in CSV."""
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
    """Parse ``[[IP:][HOST_PORT]:]PORT[/PROTOCOL]``, ports being single or ranges, or the long
    form ``published=…,target=…,protocol=…``."""
    if "=" in text:
        text = _long_publish(text)
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


def _long_publish(text: str) -> str:
    found = {"published": "", "target": "", "protocol": "tcp", "mode": ""}
    for item in fields(text):
        key, separator, value = item.partition("=")
        if not separator or key not in found:
            raise UsageError(
                f"invalid field {item!r} in -p {text!r}",
                hint="The fields are target, published and protocol.",
            )
        found[key] = value
    return f"{found['published']}:{found['target']}/{found['protocol']}"


def parse_expose(text: str) -> list[str]:
    """Parse ``80``, ``80-90/udp`` into ``80/tcp`` …"""
    ports, protocol = _protocol(text, text)
    low, high = parse_port_range(ports, whole=text)
    return [f"{port}/{protocol}" for port in range(low, high + 1)]


# --- pairs, limits ---------------------------------------------------------------------


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
    for item in fields(text):
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
