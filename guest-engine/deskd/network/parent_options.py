"""What the options of macvlan and ipvlan networks say. Pure rules, no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping

from deskd.domain.network import (
    OPTION_IPVLAN_FLAG,
    OPTION_IPVLAN_MODE,
    OPTION_MACVLAN_MODE,
    OPTION_PARENT,
    NetworkRecord,
)
from deskd.errors import InvalidArgument
from deskd.kernel import stacked_links

STACKED = ("ipvlan", "macvlan")
"""Drivers whose containers' interfaces are put upon one of the machine's."""

INTERFACE_NAME_BYTES = 15


def check_parent_options(driver: str, options: Mapping[str, str]) -> None:
    """Raise ``InvalidArgument`` for options that such a network cannot have."""
    if driver == "macvlan":
        _check_choice(options, OPTION_MACVLAN_MODE, stacked_links.MACVLAN_MODES, "bridge")
    else:
        _check_choice(options, OPTION_IPVLAN_MODE, stacked_links.IPVLAN_MODES, "l2")
        _check_choice(options, OPTION_IPVLAN_FLAG, stacked_links.IPVLAN_FLAGS, "bridge")
    name = options.get(OPTION_PARENT, "")
    if name == "lo":
        raise InvalidArgument(f"loopback interface is not a valid {driver} parent link")
    if len(name.encode()) > INTERFACE_NAME_BYTES or not re.fullmatch(r"[!-.0-~]*", name):
        raise InvalidArgument(
            f"invalid parent {name!r}: give the name of an interface, of at most "
            f"{INTERFACE_NAME_BYTES} bytes"
        )


def _check_choice(
    options: Mapping[str, str], key: str, choices: Mapping[str, int], default: str
) -> None:
    value = options.get(key) or default
    if value not in choices:
        what = key.replace("_", " ")
        raise InvalidArgument(
            f"requested {what} {value!r} is not valid: use one of {', '.join(choices)} "
            f"({default} is the default)"
        )


def has_parent(record: NetworkRecord) -> bool:
    """Tell whether a macvlan or ipvlan network is put upon an interface that its user named."""
    return bool(record.options.get(OPTION_PARENT))


def parent_name(record: NetworkRecord) -> str:
    """Return the interface that a macvlan or ipvlan network is put upon."""
    made = f"{'dm' if record.driver == 'macvlan' else 'di'}-{record.id[:12]}"
    return record.options.get(OPTION_PARENT) or made


def parent_mode(record: NetworkRecord) -> str:
    """Return a macvlan or ipvlan network's mode."""
    if record.driver == "macvlan":
        return record.options.get(OPTION_MACVLAN_MODE) or "bridge"
    return record.options.get(OPTION_IPVLAN_MODE) or "l2"


def uses_gateway(record: NetworkRecord) -> bool:
    """Tell whether a network's containers ask a gateway for the way out; those of an ipvlan
    network on layer 3 hand everything to the machine."""
    return not (record.driver == "ipvlan" and parent_mode(record) != "l2")
