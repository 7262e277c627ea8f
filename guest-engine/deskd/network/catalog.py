"""Which networks there are: the predefined three, those that users made, and the rules for both."""

from __future__ import annotations

import datetime
import ipaddress
import re
import secrets
from collections.abc import Callable, Mapping

import msgspec

from deskd.domain.network import (
    GATEWAY_MODES,
    OPTION_BRIDGE_NAME,
    OPTION_DEFAULT_BRIDGE,
    OPTION_HOST_BINDING,
    OPTION_INHIBIT_IPV4,
    OPTION_INTER_CONTAINER,
    OPTION_MASQUERADE,
    OPTION_MTU,
    ConfigReference,
    Gateways,
    Ipam,
    Network,
    NetworkContainer,
    NetworkCreateRequest,
    NetworkRecord,
    NetworkRecords,
)
from deskd.errors import Conflict, Forbidden, InvalidArgument, NotFound, Unsupported
from deskd.network.ipam import check_config
from deskd.network.parent_options import (
    INTERFACE_NAME_BYTES,
    STACKED,
    check_parent_options,
    has_parent,
)

PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}
"""Names and drivers of the networks that always exist."""

DRIVERS = ("bridge", "host", "ipvlan", "macvlan", "null")

DEFAULT_NETWORK = "bridge"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")


class Catalog:
    """All networks, kept in memory and written through to their records.

    Read on the event loop and changed in threads, one change at a time: a change replaces the
    dictionary, so that nobody iterates over one that changes.
    """

    def __init__(
        self,
        records: NetworkRecords,
        default_bridge: str,
        mtu: int = 0,
        *,
        inter_container: bool = True,
        enable_ipv6: bool = False,
    ) -> None:
        self._records = records
        self._by_id = {record.id: record for record in records.all()}
        names = {record.name for record in self._by_id.values()}
        for name, driver in PREDEFINED.items():
            if name not in names:
                self.put(_new_record(name, driver))
        self._set_default_options(
            default_bridge, mtu, inter_container=inter_container, enable_ipv6=enable_ipv6
        )

    def _set_default_options(
        self, bridge: str, mtu: int, *, inter_container: bool, enable_ipv6: bool
    ) -> None:
        default = self.find(DEFAULT_NETWORK)
        options = {
            OPTION_DEFAULT_BRIDGE: "true",
            OPTION_INTER_CONTAINER: str(inter_container).lower(),
            OPTION_MASQUERADE: "true",
            OPTION_HOST_BINDING: "0.0.0.0",
            OPTION_BRIDGE_NAME: bridge,
            OPTION_MTU: str(mtu or 1500),
        }
        if default.options != options or default.enable_ipv6 != enable_ipv6:
            self.put(msgspec.structs.replace(default, options=options, enable_ipv6=enable_ipv6))

    def all(self) -> list[NetworkRecord]:
        """Return every network, the oldest first."""
        return list(self._by_id.values())

    def get(self, network_id: str) -> NetworkRecord | None:
        """Return the network with this full ID."""
        return self._by_id.get(network_id)

    def find(self, reference: str) -> NetworkRecord:
        """Return the network with this ID, name or unambiguous start of an ID.

        ``default`` and nothing mean the default bridge network. Raises ``NotFound``, and
        ``InvalidArgument`` for an ambiguous start.
        """
        if reference in self._by_id:
            return self._by_id[reference]
        name = DEFAULT_NETWORK if reference in ("", "default") else reference
        by_name = [record for record in self._by_id.values() if record.name == name]
        if by_name:
            return by_name[0]
        matches = [record for key, record in self._by_id.items() if key.startswith(reference)]
        if not matches:
            raise NotFound(f"network {reference} not found")
        if len(matches) > 1:
            raise InvalidArgument(
                f"network {reference} is ambiguous ({len(matches)} matches found based on ID "
                "prefix): give more of the ID"
            )
        return matches[0]

    def put(self, record: NetworkRecord) -> None:
        """Add or replace a network."""
        self._records.put(record)
        self._by_id = {**self._by_id, record.id: record}

    def delete(self, network_id: str) -> None:
        """Forget a network; idempotent."""
        self._records.delete(network_id)
        self._by_id = {key: kept for key, kept in self._by_id.items() if key != network_id}

    def new(self, request: NetworkCreateRequest) -> NetworkRecord:
        """Check a wish for a network and return its record, with the subnets that were wished for
        and not yet kept."""
        self._check_name(request.name)
        if request.config_only:
            return self._new_configuration(request)
        driver = request.driver or "bridge"
        if driver not in DRIVERS:
            raise NotFound(
                f"network driver {driver!r} not found: this engine's drivers are "
                f"{', '.join(DRIVERS)}"
            )
        if driver in ("host", "null"):
            raise Forbidden(
                f"only one instance of {driver!r} network is allowed: it exists already"
            )
        if request.scope not in ("", "local") or request.ingress:
            raise Unsupported(
                "networks of swarm scope are not supported: this engine is one machine"
            )
        source = self._configuration(request)
        if source is not None:
            options, ipam, enable_ipv6 = source.options, source.ipam, source.enable_ipv6
        else:
            options, ipam = dict(request.options or {}), request.ipam or Ipam()
            enable_ipv6 = bool(request.enable_ipv6)
        enable_ipv4 = request.enable_ipv4 is not False
        if not enable_ipv4 and not enable_ipv6:
            raise InvalidArgument("IPv4 or IPv6 must be enabled: add --ipv6")
        check_options(options)
        if driver in STACKED:
            check_parent_options(driver, options)
        self._check_bridge_name(options)
        _check_ipam_driver(ipam)
        record = _new_record(request.name, driver)
        return msgspec.structs.replace(
            record,
            enable_ipv4=enable_ipv4,
            enable_ipv6=enable_ipv6,
            ipam=ipam,
            internal=request.internal,
            attachable=request.attachable,
            options=options,
            labels=dict(request.labels or {}),
            config_from=source.name if source is not None else "",
        )

    def _new_configuration(self, request: NetworkCreateRequest) -> NetworkRecord:
        """Return a record that only holds settings for other networks."""
        if request.config_from is not None and request.config_from.network:
            raise Forbidden(
                "a configuration network cannot depend on another configuration network"
            )
        ipam, options = request.ipam or Ipam(), dict(request.options or {})
        _check_ipam_driver(ipam)
        check_options(options)
        for config in ipam.config or ():
            if config.subnet:
                check_config(config)
        return msgspec.structs.replace(
            _new_record(request.name, "null"),
            config_only=True,
            enable_ipv6=bool(request.enable_ipv6),
            ipam=msgspec.structs.replace(ipam, options=ipam.options or {}),
            internal=request.internal,
            attachable=request.attachable,
            options=options,
            labels=dict(request.labels or {}),
        )

    def _configuration(self, request: NetworkCreateRequest) -> NetworkRecord | None:
        """Return the network whose settings are wanted, if any; its own must not be given then."""
        wanted = request.config_from.network if request.config_from is not None else ""
        if not wanted:
            return None
        found = next((r for r in self.all() if r.config_only and r.name == wanted), None)
        if found is None:
            raise NotFound(f'configuration network "{wanted}" does not exist')
        if request.options:
            raise Forbidden(
                "network driver options are not supported if the network depends on a "
                "configuration network"
            )
        if request.ipam is not None and (request.ipam.config or request.ipam.options):
            raise Forbidden(
                "user specified configurations are not supported if the network depends on a "
                "configuration network"
            )
        return found

    def dependents(self, record: NetworkRecord) -> list[str]:
        """Return the names of the networks that have their settings from this one."""
        return [r.name for r in self.all() if record.config_only and r.config_from == record.name]

    def _check_name(self, name: str) -> None:
        if name in (*PREDEFINED, "default"):
            raise Forbidden(
                f"operation is not permitted on predefined {name} network: choose another name"
            )
        if not _NAME.match(name):
            raise InvalidArgument(
                f"invalid network name {name!r}: only [a-zA-Z0-9][a-zA-Z0-9_.-]* are allowed"
            )
        if any(record.name == name for record in self._by_id.values()):
            raise Conflict(f"network with name {name} already exists")

    def _check_bridge_name(self, options: Mapping[str, str]) -> None:
        wanted = options.get(OPTION_BRIDGE_NAME)
        for record in self._by_id.values():
            if wanted and record.driver == "bridge" and bridge_name(record) == wanted:
                raise Conflict(
                    f"the bridge name {wanted} belongs to the network {record.name}: choose another"
                )


def check_options(options: Mapping[str, str]) -> None:
    """Raise ``InvalidArgument`` for driver options that cannot be honoured."""
    name = options.get(OPTION_BRIDGE_NAME, "")
    if name:
        check_interface_name(name)
    mtu = options.get(OPTION_MTU, "")
    if mtu and not (mtu.isascii() and mtu.isdigit() and 68 <= int(mtu) <= 65535):
        raise InvalidArgument(f"invalid MTU {mtu!r}: give a number between 68 and 65535")
    for key in (OPTION_MASQUERADE, OPTION_INTER_CONTAINER, OPTION_INHIBIT_IPV4):
        if options.get(key, "true").lower() not in ("true", "false", "1", "0"):
            raise InvalidArgument(f"invalid {key} {options[key]!r}: give true or false")
    binding = options.get(OPTION_HOST_BINDING, "")
    if binding:
        try:
            ipaddress.IPv4Address(binding)
        except ValueError as error:
            raise InvalidArgument(
                f"invalid {OPTION_HOST_BINDING} {binding!r}: give an IPv4 address of the machine"
            ) from error
    for key in GATEWAY_MODES:
        _check_gateway_mode(key, options.get(key) or "nat")


def _check_gateway_mode(key: str, mode: str) -> None:
    if mode in ("routed", "isolated", "nat-unprotected"):
        raise Unsupported(
            f"{key} {mode} is not supported: only nat is (--internal makes a network without a way "
            "out)"
        )
    if mode != "nat":
        raise InvalidArgument(f"invalid {key} {mode!r}: give nat")


def _check_ipam_driver(ipam: Ipam) -> None:
    if ipam.driver not in ("", "default"):
        raise NotFound(f"IPAM driver {ipam.driver!r} not found: the only one is default")


def check_interface_name(name: str) -> None:
    """Raise ``InvalidArgument`` for a name that the kernel or nftables cannot take."""
    if len(name.encode()) > INTERFACE_NAME_BYTES or not _NAME.match(name):
        raise InvalidArgument(
            f"invalid bridge name {name!r}: at most {INTERFACE_NAME_BYTES} letters, digits, '_', "
            "'.' and '-'"
        )


def is_true(text: str) -> bool:
    """Read a driver option's truth value."""
    return text.lower() in ("true", "1")


def bridge_name(record: NetworkRecord) -> str:
    """Return the name of a bridge network's interface."""
    return record.options.get(OPTION_BRIDGE_NAME) or f"br-{record.id[:12]}"


def bridge_mtu(record: NetworkRecord) -> int:
    """Return a bridge network's MTU in bytes, 0 for the kernel's default."""
    return int(record.options.get(OPTION_MTU) or 0)


def allows_inter_container(record: NetworkRecord) -> bool:
    """Tell whether containers of a bridge network may reach each other."""
    return is_true(record.options.get(OPTION_INTER_CONTAINER, "true"))


def has_name_server(record: NetworkRecord) -> bool:
    """Tell whether containers of a network find each other by name: in all that users made."""
    return record.name not in PREDEFINED


def leads_out(record: NetworkRecord) -> bool:
    """Tell whether containers may send by a network what goes outside."""
    if record.internal or record.driver in ("host", "null"):
        return False
    return record.driver not in STACKED or has_parent(record)


def gateways(records: Mapping[str, NetworkRecord]) -> Gateways:
    """Return the keys of the networks by which a container in all of these sends what goes out: as
    with Docker the first by its name of those that are not internal and have the family."""
    leading = sorted((record.name, key) for key, record in records.items() if leads_out(record))

    def first(enabled: Callable[[NetworkRecord], bool]) -> str:
        return next((key for _, key in leading if enabled(records[key])), "")

    return Gateways(first(lambda r: r.enable_ipv4), first(lambda r: r.enable_ipv6))


def _new_record(name: str, driver: str) -> NetworkRecord:
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    return NetworkRecord(
        id=secrets.token_hex(32),
        name=name,
        created=created.replace("+00:00", "Z"),
        driver=driver,
    )


def describe(
    record: NetworkRecord, containers: Mapping[str, NetworkContainer] | None = None
) -> Network:
    """Return a network as the API shows it."""
    return Network(
        name=record.name,
        id=record.id,
        created=record.created,
        driver=record.driver,
        enable_ipv4=record.enable_ipv4,
        enable_ipv6=record.enable_ipv6,
        ipam=record.ipam,
        internal=record.internal,
        attachable=record.attachable,
        config_from=ConfigReference(record.config_from),
        config_only=record.config_only,
        containers=dict(containers or {}),
        options=record.options,
        labels=record.labels,
    )
