"""Which networks there are: the predefined three, those that users made, and the rules for both."""

from __future__ import annotations

import datetime
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from deskd.domain.network import (
    OPTION_BRIDGE_NAME,
    OPTION_DEFAULT_BRIDGE,
    OPTION_HOST_BINDING,
    OPTION_INTER_CONTAINER,
    OPTION_MASQUERADE,
    OPTION_MTU,
    Gateways,
    Ipam,
    Network,
    NetworkContainer,
    NetworkCreateRequest,
    NetworkRecord,
    NetworkRecords,
)
from deskd.domain.times import parse_moment, rfc3339_fixed
from deskd.errors import Conflict, Forbidden, InvalidArgument, NotFound, Unsupported
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
_FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type", "until", "label!")


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
        """Check a wish for a network and return its record, without addresses and not yet kept."""
        self._check_name(request.name)
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
        if request.scope not in ("", "local") or request.ingress or request.config_only:
            raise Unsupported(
                "networks of swarm scope are not supported: this engine is one machine"
            )
        if request.config_from is not None and request.config_from.network:
            raise Unsupported(
                "config-from networks are not supported: give the settings themselves"
            )
        enable_ipv4, enable_ipv6 = request.enable_ipv4 is not False, bool(request.enable_ipv6)
        if not enable_ipv4 and not enable_ipv6:
            raise InvalidArgument("IPv4 or IPv6 must be enabled: add --ipv6")
        options = dict(request.options or {})
        check_options(options)
        if driver in STACKED:
            check_parent_options(driver, options)
        self._check_bridge_name(options)
        ipam = request.ipam or Ipam()
        if ipam.driver not in ("", "default"):
            raise NotFound(f"IPAM driver {ipam.driver!r} not found: the only one is default")
        record = _new_record(request.name, driver)
        return msgspec.structs.replace(
            record,
            enable_ipv4=enable_ipv4,
            enable_ipv6=enable_ipv6,
            internal=request.internal,
            attachable=request.attachable,
            options=options,
            labels=dict(request.labels or {}),
        )

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
    for key in (OPTION_MASQUERADE, OPTION_INTER_CONTAINER):
        if options.get(key, "true").lower() not in ("true", "false", "1", "0"):
            raise InvalidArgument(f"invalid {key} {options[key]!r}: give true or false")


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
        containers=dict(containers or {}),
        options=record.options,
        labels=record.labels,
    )


# --- filters ------------------------------------------------------------------------------------


def matches(
    record: NetworkRecord, filters: Mapping[str, Sequence[str]], in_use: Collection[str]
) -> bool:
    """Tell whether a network passes the API's filters; ``in_use`` has the IDs with endpoints.

    Values of one filter are alternatives, labels excepted; all filters must pass. Raises
    ``InvalidArgument`` for a filter that does not exist.
    """
    for key, values in filters.items():
        if key not in _FILTERS:
            raise InvalidArgument(f"invalid filter {key!r}: use one of {', '.join(_FILTERS)}")
        if values and not _passes(record, key, values, in_use):
            return False
    return True


def _passes(
    record: NetworkRecord, key: str, values: Sequence[str], in_use: Collection[str]
) -> bool:
    builtin = record.name in PREDEFINED
    if key == "label":
        return all(_has_label(record.labels, value) for value in values)
    if key == "label!":
        return not any(_has_label(record.labels, value) for value in values)
    if key == "type":
        if not set(values) <= {"builtin", "custom"}:
            raise InvalidArgument(f"invalid filter: 'type'={values[0]!r}: use custom or builtin")
        return ("builtin" if builtin else "custom") in values
    if key == "dangling":
        wanted = [value.lower() in ("true", "1") for value in values]
        return (not builtin and record.id not in in_use) in wanted
    if key == "until":
        return all(record.created < _moment(value) for value in values)
    text = {"driver": record.driver, "scope": "local", "id": record.id, "name": record.name}[key]
    if key in ("driver", "scope"):
        return text in values
    return any(value in text for value in values)


def _has_label(labels: Mapping[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _moment(text: str) -> str:
    """Read ``until``: a Unix time, an RFC 3339 time or a Go duration before now; return UTC."""
    return rfc3339_fixed(parse_moment(text, "until") or 0)
