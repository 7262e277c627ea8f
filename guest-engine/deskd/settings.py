"""The engine's settings: dockerd's flags and daemon.json keys, checked and merged into one value.

A flag or key that is accepted takes effect; one that this engine cannot honour is refused with a
sentence. A setting may be given as a flag or in the file, not in both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from deskd.errors import InvalidArgument, Unsupported
from deskd.record import Record, field

TYPE_CHECKING = False  # known to type checkers; see deskd.record
if TYPE_CHECKING:
    import argparse
    from typing import Any

DEFAULT_EXEC_ROOT = "/run/desk"
DEFAULT_CONFIG_FILE = "/etc/desk/daemon.json"
HOST_BY_AGENT = "agent"
"""Value of ``--host-gateway-ip`` instead of an address."""

LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")


class TlsSettings(Record):
    """Files and strictness of TLS on ``tcp://`` hosts; ``verify`` asks clients for certificates."""

    enabled: bool = False
    verify: bool = False
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""


class AddressPool(Record):
    """Where networks without a subnet of their own get one: ``base`` cut in ``/size`` pieces."""

    base: str
    size: int


class Settings(Record):
    """Everything that can be set; empty strings mean the default that the user of the value has."""

    hosts: tuple[str, ...] = ()
    data_root: str = "/var/lib/desk"
    exec_root: str = DEFAULT_EXEC_ROOT
    pidfile: str = ""
    group: str = ""
    bridge: str = ""
    bip: str = ""
    icc: bool = True
    default_address_pools: tuple[AddressPool, ...] = ()
    mtu: int = 0
    ipv6: bool = False
    fixed_cidr_v6: str = ""
    dns: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    host_gateway_ip: str = ""
    cgroup_parent: str = ""
    labels: tuple[str, ...] = ()
    log_level: str = "info"
    log_options: dict[str, str] = field(default_factory=dict)
    registry_mirrors: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    userns_remap: str = ""
    bin_age: str = ""
    bin_size: str = ""
    bin_clients: str = ""
    tls: TlsSettings = TlsSettings()
    debug: bool = False


class _Option(Record):
    """One setting: its flag, its daemon.json key and how a raw value becomes a checked one."""

    flag: str
    key: str
    target: str
    help: str
    kind: str = "str"  # "str", "int", "bool", "list", "map"
    short: str = ""
    metavar: str = ""
    refusal: str = ""  # why any value but the neutral one is refused
    neutral: tuple[Any, ...] = ()


_OPTIONS: tuple[_Option, ...] = (
    _Option("host", "hosts", "hosts", "where to listen: unix://PATH, tcp://IP:PORT or fd://",
            "list", "-H", "HOST"),
    _Option("data-root", "data-root", "data_root", "directory of everything that persists"),
    _Option("exec-root", "exec-root", "exec_root", "directory of what a reboot takes away"),
    _Option("pidfile", "pidfile", "pidfile", "file for the engine's process ID", short="-p"),
    _Option("group", "group", "group", "group that may use the unix socket", short="-G"),
    _Option("bridge", "bridge", "bridge", "name of the default network's bridge", short="-b"),
    _Option("bip", "bip", "bip", "address and prefix of the default bridge, as 172.17.0.1/16"),
    _Option("icc", "icc", "icc", "let containers of the default network reach each other", "bool"),
    _Option("default-address-pool", "default-address-pools", "default_address_pools",
            "pool for new networks, as base=172.30.0.0/16,size=24", "list", metavar="POOL"),
    _Option("mtu", "mtu", "mtu", "MTU of the default network", "int"),
    _Option("ipv6", "ipv6", "ipv6", "give the default network IPv6", "bool"),
    _Option("fixed-cidr-v6", "fixed-cidr-v6", "fixed_cidr_v6",
            "IPv6 subnet of the default network, as fd00:17::/64"),
    _Option("dns", "dns", "dns", "name server for containers", "list", metavar="IP"),
    _Option("dns-opt", "dns-opts", "dns_options", "resolver option for containers", "list"),
    _Option("dns-search", "dns-search", "dns_search", "search domain for containers", "list"),
    _Option("host-gateway-ip", "host-gateway-ip", "host_gateway_ip",
            "address that host-gateway and host.docker.internal mean; agent: the computer whose "
            "agent is connected, through it", metavar="IP"),
    _Option("cgroup-parent", "cgroup-parent", "cgroup_parent", "cgroup that holds all containers"),
    _Option("label", "labels", "labels", "key=value label of this engine", "list"),
    _Option("log-level", "log-level", "log_level", "debug, info, warn, error or fatal", short="-l"),
    _Option("log-opt", "log-opts", "log_options", "default log option, as max-size=10m", "map"),
    _Option("debug", "debug", "debug", "log as much as possible", "bool", short="-D"),
    _Option("tls", "tls", "tls", "use TLS on tcp:// hosts", "bool"),
    _Option("tlsverify", "tlsverify", "tlsverify", "use TLS and verify clients", "bool"),
    _Option("tlscacert", "tlscacert", "tlscacert", "CA that client certificates are checked with"),
    _Option("tlscert", "tlscert", "tlscert", "certificate of this engine"),
    _Option("tlskey", "tlskey", "tlskey", "private key of that certificate"),
    _Option("storage-driver", "storage-driver", "", "overlay2 is the only one", short="-s",
            refusal="the only storage driver is overlay2", neutral=("", "overlay2")),
    _Option("log-driver", "log-driver", "", "json-file is the only default",
            refusal="the only default log driver is json-file", neutral=("", "json-file")),
    _Option("live-restore", "live-restore", "", "always on: containers outlive the engine", "bool",
            refusal="live restore cannot be switched off", neutral=(True,)),
    _Option("registry-mirror", "registry-mirrors", "registry_mirrors",
            "mirror of docker.io, as https://HOST", "list", metavar="URL"),
    _Option("insecure-registry", "insecure-registries", "insecure_registries",
            "registry (HOST:PORT or network) without verified TLS", "list", metavar="REGISTRY"),
    _Option("http-proxy", "http-proxy", "http_proxy", "proxy for http:// addresses", metavar="URL"),
    _Option("https-proxy", "https-proxy", "https_proxy", "proxy for https:// addresses",
            metavar="URL"),
    _Option("no-proxy", "no-proxy", "no_proxy", "hosts and networks to reach without a proxy",
            metavar="HOSTS"),
    _Option("userns-remap", "userns-remap", "userns_remap",
            "user[:group] whose subordinate IDs containers get; default means dockremap"),
    _Option("bin-age", "bin-age", "bin_age",
            "how long what desk removes can be brought back (24h); 0: not at all",
            metavar="DURATION"),
    _Option("bin-size", "bin-size", "bin_size",
            "how much the bin keeps at most (10g)", metavar="SIZE"),
    _Option("bin-clients", "bin-clients", "bin_clients",
            "whose removals go into the bin: desk (its own clients) or all"),
)  # fmt: skip


_PROXIES = {"http-proxy", "https-proxy", "no-proxy"}
"""Keys of ``proxies`` in daemon.json; their flags stand alone."""


def parse_arguments(argv: Sequence[str]) -> Settings:
    """Read the command line and the configuration file.

    Raises ``InvalidArgument`` or ``Unsupported`` naming the flag or key; ``SystemExit`` for
    ``--help`` and unknown flags, as argparse does.
    """
    parsed = _read_plain_flags(argv)
    if parsed is None:
        parsed = vars(_parser().parse_args(argv))
    config_file = parsed.pop("config_file")
    from_flags = {name: value for name, value in parsed.items() if value not in (None, [])}
    from_file = _read_config_file(config_file)
    _refuse_doubles(from_flags, from_file)
    raw: dict[str, Any] = {}
    for option in _OPTIONS:
        if option.flag in from_flags:
            raw[option.flag] = _checked(option, from_flags[option.flag], f"--{option.flag}")
        elif option.key in from_file:
            raw[option.flag] = _checked(option, from_file[option.key], f'"{option.key}"')
    return _build(raw)


def early_exec_root(argv: Sequence[str]) -> str:
    """Find the exec root without the argument parser: the launcher needs it and is forked first.

    Mistakes are left for ``parse_arguments`` to tell.
    """
    flags = {"--exec-root": "", "--config-file": DEFAULT_CONFIG_FILE}
    for position, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in flags:
            flags[name] = value if equals else "".join(argv[position + 1 : position + 2])
    if flags["--exec-root"]:
        return os.path.abspath(flags["--exec-root"])
    import json

    try:
        with open(flags["--config-file"], "rb") as file:
            chosen = json.load(file)["exec-root"]
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_EXEC_ROOT
    return os.path.abspath(chosen) if isinstance(chosen, str) else DEFAULT_EXEC_ROOT


def _read_plain_flags(argv: Sequence[str]) -> dict[str, Any] | None:
    """Read known flags that each have a value; ``None`` where anything else is among them.

    That is how a guest starts the engine. Loading argparse would take a twelfth of the start.
    """
    known = {"--config-file": ("config_file", "str")}
    for option in _OPTIONS:
        if option.kind in ("str", "list"):
            known[f"--{option.flag}"] = (option.flag, option.kind)
            if option.short:
                known[option.short] = (option.flag, option.kind)
    parsed: dict[str, Any] = {"config_file": None}
    if len(argv) % 2:
        return None
    for name, value in zip(argv[::2], argv[1::2], strict=True):
        if name not in known or value.startswith("-"):
            return None
        target, kind = known[name]
        if kind == "list":
            parsed.setdefault(target, []).append(value)
        else:
            parsed[target] = value
    return parsed


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        prog="deskd",
        description="Desk's container engine: speaks the Docker Engine API.",
        epilog="Also: deskd dial-stdio [--host unix://PATH] joins standard input and output "
        "to the engine's socket; deskd relay-datagrams joins them to UDP ports, for an agent; "
        "deskd purge --data-root PATH removes the interfaces and firewall rules of an engine that "
        "was killed; deskd --version.",
        allow_abbrev=False,
    )
    parser.add_argument("--config-file", dest="config_file", metavar="PATH",
                        help="daemon.json to read (default: /etc/desk/daemon.json)")  # fmt: skip
    for option in _OPTIONS:
        names = [option.short] if option.short else []
        names.append(f"--{option.flag}")
        keywords: dict[str, Any] = {"dest": option.flag, "help": option.help, "default": None}
        if option.kind == "bool":
            keywords.update(nargs="?", const="true", metavar="BOOL")
        else:
            keywords["metavar"] = option.metavar or option.flag.upper().replace("-", "_")
        if option.kind in ("list", "map"):
            keywords["action"] = "append"
        parser.add_argument(*names, **keywords)
    return parser


def _read_config_file(path: str | None) -> dict[str, Any]:

    chosen = path or DEFAULT_CONFIG_FILE
    try:
        with open(chosen, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        if path is None:
            return {}
        raise InvalidArgument(
            f"the configuration file {chosen} does not exist; create it or drop --config-file"
        ) from None
    except OSError as error:
        raise InvalidArgument(
            f"the configuration file {chosen} cannot be read: {error.strerror}"
        ) from error
    if content.strip() in (b"", b"{}"):
        return {}
    import json

    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise InvalidArgument(
            f"the configuration file {chosen} is not valid JSON: {error}"
        ) from error
    if not isinstance(parsed, dict):
        raise InvalidArgument(f"the configuration file {chosen} must hold a JSON object")
    unknown = sorted(set(parsed) - {option.key for option in _OPTIONS} - {"proxies"})
    if unknown:
        raise InvalidArgument(
            f"the configuration file {chosen} has keys that this engine does not know: "
            f"{', '.join(unknown)}; remove them"
        )
    proxies = parsed.pop("proxies", {})
    if not isinstance(proxies, dict) or set(proxies) - _PROXIES:
        raise InvalidArgument(
            f'"proxies" in the configuration file {chosen} must be an object with '
            f"{', '.join(sorted(_PROXIES))}"
        )
    return {**parsed, **proxies}


def _refuse_doubles(from_flags: dict[str, Any], from_file: dict[str, Any]) -> None:
    doubles = [o for o in _OPTIONS if o.flag in from_flags and o.key in from_file]
    if doubles:
        told = ", ".join(
            f"{o.key}: (from flag: {from_flags[o.flag]}, from file: {from_file[o.key]})"
            for o in doubles
        )
        raise InvalidArgument(
            "the following directives are specified both as a flag and in the configuration "
            f"file: {told}; keep one of the two"
        )


def _checked(option: _Option, value: Any, where: str) -> Any:
    converted = _CONVERTERS[option.kind](value, where)
    if option.refusal and converted not in option.neutral and converted != []:
        raise Unsupported(f"{where} {value} cannot be honoured: {option.refusal}; remove it")
    return converted


def _to_str(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{where} must be a string, not {value!r}")
    return value


def _to_int(value: Any, where: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{where} must be a whole number, not {value!r}") from None


def _to_bool(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "1", "t"):
        return True
    if str(value).lower() in ("false", "0", "f"):
        return False
    raise InvalidArgument(f"{where} must be true or false, not {value!r}")


def _to_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidArgument(f"{where} must be a list, not {value!r}")
    return value


def _to_map(value: Any, where: str) -> dict[str, str]:
    if isinstance(value, dict):
        return {str(key): str(item) for key, item in value.items()}
    pairs = {}
    for item in _to_list(value, where):
        key, equals, text = str(item).partition("=")
        if not equals:
            raise InvalidArgument(f"{where} {item} must have the form key=value")
        pairs[key] = text
    return pairs


_CONVERTERS: dict[str, Callable[[Any, str], Any]] = {
    "str": _to_str,
    "int": _to_int,
    "bool": _to_bool,
    "list": _to_list,
    "map": _to_map,
}


def _build(raw: dict[str, Any]) -> Settings:
    tls = TlsSettings(
        enabled=raw.pop("tls", False) or raw.get("tlsverify", False),
        verify=raw.pop("tlsverify", False),
        ca_file=raw.pop("tlscacert", ""),
        certificate_file=raw.pop("tlscert", ""),
        key_file=raw.pop("tlskey", ""),
    )
    if tls.enabled and not (tls.certificate_file and tls.key_file):
        raise InvalidArgument("TLS needs a certificate and a key: give --tlscert and --tlskey")
    if tls.verify and not tls.ca_file:
        raise InvalidArgument("--tlsverify needs a CA to verify clients with: give --tlscacert")
    values: dict[str, Any] = {}
    for option in _OPTIONS:
        if option.target and option.flag in raw:
            value = raw[option.flag]
            values[option.target] = tuple(value) if isinstance(value, list) else value
    pools = values.get("default_address_pools", ())
    values["default_address_pools"] = tuple(_address_pool(pool) for pool in pools)
    if values.get("log_level", "info") not in LOG_LEVELS:
        raise InvalidArgument(
            f"--log-level {values['log_level']} is unknown; use one of {', '.join(LOG_LEVELS)}"
        )
    for name in ("data_root", "exec_root", "pidfile"):
        if values.get(name):
            values[name] = os.path.abspath(values[name])
    _check_addresses(values)
    for mirror in values.get("registry_mirrors", ()):
        parse_mirror(mirror)
    for registry in values.get("insecure_registries", ()):
        _check_insecure(registry)
    for name in ("http_proxy", "https_proxy"):
        _check_proxy(values.get(name, ""), name.replace("_", "-"))
    return Settings(tls=tls, **values)


def _check_proxy(text: str, flag: str) -> None:
    if text and not text.startswith(("http://", "https://")):
        raise InvalidArgument(f"--{flag} {text} must have the form http://HOST:PORT")


def _check_addresses(values: dict[str, Any]) -> None:
    if not any(values.get(name) for name in ("dns", "bip", "fixed_cidr_v6", "host_gateway_ip")):
        return
    import ipaddress

    host = values.get("host_gateway_ip", "")
    if host and host != HOST_BY_AGENT:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise InvalidArgument(
                f"--host-gateway-ip {host} is not an IP address; give one, or {HOST_BY_AGENT}"
            ) from None

    for server in values.get("dns", ()):
        try:
            ipaddress.ip_address(server)
        except ValueError:
            raise InvalidArgument(f"--dns {server} is not an IP address") from None
    if values.get("bip"):
        try:
            interface = ipaddress.IPv4Interface(values["bip"])
        except ValueError:
            raise InvalidArgument(
                f"--bip {values['bip']} is not an address with a prefix, as 172.17.0.1/16"
            ) from None
        if interface.network.num_addresses < 4:
            raise InvalidArgument(f"--bip {values['bip']} leaves no address for containers")
    if values.get("fixed_cidr_v6"):
        try:
            subnet = ipaddress.IPv6Network(values["fixed_cidr_v6"])
        except ValueError:
            raise InvalidArgument(
                f"--fixed-cidr-v6 {values['fixed_cidr_v6']} is no IPv6 subnet, as fd00:17::/64"
            ) from None
        if subnet.num_addresses < 4:
            raise InvalidArgument(f"--fixed-cidr-v6 {subnet} leaves no address for containers")


def _address_pool(value: Any) -> AddressPool:
    if isinstance(value, dict):
        given = value
    else:
        given = dict(part.partition("=")[::2] for part in str(value).split(","))
    if set(given) != {"base", "size"}:
        raise InvalidArgument(
            f"--default-address-pool {value} must have the form base=172.30.0.0/16,size=24"
        )
    import ipaddress

    try:
        base = ipaddress.ip_network(given["base"])
        size = int(given["size"])
    except ValueError as error:
        raise InvalidArgument(f"--default-address-pool {value} is wrong: {error}") from error
    if not base.prefixlen <= size <= base.max_prefixlen - 2:
        raise InvalidArgument(
            f"--default-address-pool {value}: size must lie between {base.prefixlen} and "
            f"{base.max_prefixlen - 2}"
        )
    return AddressPool(str(base), size)


def parse_mirror(text: str) -> tuple[str, str, str]:
    """Split ``https://HOST[:PORT][/PATH]`` in scheme, host and path; raises ``InvalidArgument``."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise InvalidArgument(f'invalid mirror: "{text}": {error}') from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgument(
            f'invalid mirror: unsupported scheme "{parts.scheme}" in "{text}": write https://HOST'
        )
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidArgument(
            f'invalid mirror: "{text}" has a user, a query or a fragment: write https://HOST'
        )
    return parts.scheme, parts.netloc, parts.path.rstrip("/")


def is_network(text: str) -> bool:
    """Say whether this is a network such as 10.0.0.0/8."""
    import ipaddress

    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return "/" in text


def _check_insecure(text: str) -> None:
    if "://" in text:
        raise InvalidArgument(
            f"insecure registry {text} should not contain '://': write HOST or HOST:PORT"
        )
    if "/" in text and not is_network(text):
        raise InvalidArgument(
            f"insecure registry {text} is neither HOST:PORT nor a network such as 10.0.0.0/8"
        )
