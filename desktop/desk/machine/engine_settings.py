"""What Desk sets of a machine's engine: options of the machine, ``daemon.json``, environment.

They are driver options of every machine with a seed. Lists are kept as one text: with commas where
no item can hold one, else a line for each item.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from desk.errors import UsageError
from desk.machine.model import MachineSpec

COMMA, LINE = ",", "\n"


@dataclass(frozen=True, slots=True)
class ListOption:
    """An option with several values, and its key in daemon.json (empty: it has none)."""

    key: str
    separator: str


LISTS = {
    "registry_mirror": ListOption("registry-mirrors", COMMA),
    "insecure_registry": ListOption("insecure-registries", COMMA),
    "dns": ListOption("dns", COMMA),
    "dns_search": ListOption("dns-search", COMMA),
    "engine_label": ListOption("labels", LINE),
    "engine_opt": ListOption("", LINE),
    "engine_env": ListOption("", LINE),
}
_PROXIES = {"http_proxy": "http-proxy", "https_proxy": "https-proxy", "no_proxy": "no-proxy"}
"""Single values, and their keys in ``proxies`` of daemon.json."""

ENGINE_OPTIONS = frozenset({*LISTS, *_PROXIES, "storage_driver"})

_STORAGE_DRIVER = "overlay2"
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")

# Flags of the engine that ``engine_opt`` may give: the key in daemon.json, and the kind of value.
_FLAGS = {
    "bin-age": ("bin-age", "duration"),
    "bin-clients": ("bin-clients", "clients"),
    "bin-size": ("bin-size", "size"),
    "bip": ("bip", "interface"),
    "cgroup-parent": ("cgroup-parent", "text"),
    "debug": ("debug", "bool"),
    "default-address-pool": ("default-address-pools", "pool"),
    "dns": ("dns", "address"),
    "dns-opt": ("dns-opts", "item"),
    "dns-search": ("dns-search", "item"),
    "fixed-cidr-v6": ("fixed-cidr-v6", "network"),
    "icc": ("icc", "bool"),
    "insecure-registry": ("insecure-registries", "item"),
    "ipv6": ("ipv6", "bool"),
    "label": ("labels", "item"),
    "log-level": ("log-level", "level"),
    "log-opt": ("log-opts", "pair"),
    "mtu": ("mtu", "count"),
    "registry-mirror": ("registry-mirrors", "item"),
    "userns-remap": ("userns-remap", "text"),
}


def items(options: Mapping[str, str], name: str) -> list[str]:
    """Return the values of an option that is a list."""
    return [item for item in options.get(name, "").split(LISTS[name].separator) if item]


def engine_settings(spec: MachineSpec) -> dict[str, Any]:
    """Return the engine's ``daemon.json`` for a machine."""
    settings: dict[str, Any] = {}
    proxies = {key: spec.options[name] for name, key in _PROXIES.items() if spec.options.get(name)}
    if proxies:
        settings["proxies"] = proxies
    for name, option in LISTS.items():
        found = items(spec.options, name)
        if found and option.key:
            settings[option.key] = found
    for text in items(spec.options, "engine_opt"):
        _add_flag(settings, text)
    return settings


def engine_environment(spec: MachineSpec) -> str:
    """Return the variables that the engine's process has besides its own, a line for each."""
    return "".join(f"{item}\n" for item in items(spec.options, "engine_env"))


def check_engine_options(options: Mapping[str, str]) -> None:
    """Raise ``UsageError`` for values that would keep the engine from starting."""
    for name, value in options.items():
        if name not in ENGINE_OPTIONS or not value:
            continue
        if name == "storage_driver":
            if value != _STORAGE_DRIVER:
                raise UsageError(
                    f"storage_driver cannot be {value!r}",
                    hint=f"{_STORAGE_DRIVER} is the only one of Desk's engine.",
                )
        elif name in _PROXIES:
            if name != "no_proxy":
                _check_place(name, value, scheme=True)
        else:
            for item in items(options, name):
                _check_item(name, item)


def _check_item(name: str, item: str) -> None:
    if name in ("registry_mirror", "insecure_registry"):
        _check_place(name, item, scheme=name == "registry_mirror")
    elif name == "dns":
        _read("address", item, "dns")
    elif name == "engine_opt":
        _add_flag({}, item)
    elif name == "engine_env" and not _ENVIRONMENT_NAME.match(item.partition("=")[0]):
        raise UsageError(f"engine_env cannot be {item!r}", hint="It has the form NAME=VALUE.")
    elif name == "engine_env" and "=" not in item:
        raise UsageError(f"engine_env {item} has no value", hint=f"Write {item}=VALUE.")
    elif any(c.isspace() for c in item) and name == "dns_search":
        raise UsageError(f"dns_search cannot be {item!r}", hint="It is a domain, as corp.example.")


def _check_place(name: str, item: str, *, scheme: bool) -> None:
    host = item.partition("://")[2].partition("/")[0] if scheme else item
    right = item.startswith(("http://", "https://")) if scheme else "://" not in item
    if not (right and host and not any(c.isspace() for c in item)):
        form = "https://HOST:PORT" if scheme else "HOST:PORT or a network"
        raise UsageError(f"{name} cannot be {item!r}", hint=f"It has the form {form}.")


def _add_flag(settings: dict[str, Any], text: str) -> None:
    """Add a flag of the engine, ``NAME=VALUE`` or a bare ``NAME``, to ``daemon.json``."""
    name, given, value = text.removeprefix("--").partition("=")
    if name == "storage-driver" and value == _STORAGE_DRIVER:
        return
    if name not in _FLAGS:
        raise UsageError(
            f"engine_opt cannot set {name!r}",
            hint=f"The engine's flags that it can set are: {', '.join(sorted(_FLAGS))}.",
        )
    key, kind = _FLAGS[name]
    if not given and kind != "bool":
        raise UsageError(f"engine_opt {name} has no value", hint=f"Write {name}=VALUE.")
    parsed = _read(kind, value or "true", f"engine_opt {name}")
    if kind == "pair":
        settings.setdefault(key, {}).update(parsed)
    elif kind in ("item", "address", "pool"):
        settings.setdefault(key, []).append(parsed)
    else:
        settings[key] = parsed


def _read(kind: str, value: str, what: str) -> Any:
    """Return a flag's value as daemon.json has it; ``UsageError`` where it is of another kind."""
    import ipaddress

    lower = value.lower()
    if kind == "bool" and lower in ("true", "false", "1", "0"):
        return lower in ("true", "1")
    if kind == "count" and value.isdecimal():
        return int(value)
    if (kind == "level" and lower in _LOG_LEVELS) or kind in ("text", "item"):
        return value
    if kind in _PATTERNS and _PATTERNS[kind].fullmatch(value):
        return value
    if kind == "pair" and value.partition("=")[2]:
        return dict([value.split("=", 1)])
    try:
        if kind == "address":
            return str(ipaddress.ip_address(value))
        if kind == "interface":
            return (
                str(ipaddress.ip_interface(value)) if "/" in value else _refuse(kind, value, what)
            )
        if kind == "network":
            return str(ipaddress.ip_network(value))
        if kind == "pool":
            parts = dict(part.split("=", 1) for part in value.split(","))
            base = ipaddress.ip_network(parts["base"])
            return {"base": str(base), "size": int(parts["size"])}
    except (ValueError, KeyError):
        pass
    return _refuse(kind, value, what)


_PATTERNS = {
    "duration": re.compile(r"0|(\d{1,6}(h|m|s))+"),
    "size": re.compile(r"\d{1,9}[kmgt]?"),
    "clients": re.compile("desk|all"),
}

_FORMS = {
    "duration": "It is a time, as 24h, or 0.",
    "size": "It is a size, as 10g.",
    "clients": "It is desk or all.",
    "bool": "It is true or false.",
    "count": "It is a whole number.",
    "level": f"It is one of: {', '.join(_LOG_LEVELS)}.",
    "pair": "It has the form NAME=VALUE.",
    "address": "It is an IP address, as 10.0.2.3.",
    "interface": "It is an address with a prefix, as 172.17.0.1/16.",
    "network": "It is a network, as fd00:17::/64.",
    "pool": "It has the form base=172.30.0.0/16,size=24.",
}


def _refuse(kind: str, value: str, what: str) -> Any:
    raise UsageError(f"{what} cannot be {value!r}", hint=_FORMS.get(kind, ""))
