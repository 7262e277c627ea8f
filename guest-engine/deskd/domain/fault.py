"""Network faults: what a client may ask for, what is kept, and the rules that need nothing else.

A fault concerns links: a link leads from one container to another in one network, in one
direction. ``/desk/faults`` in docs/desk-api.json describes the same structures.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import msgspec
from msgspec import field

from deskd.domain.container import ApiStruct
from deskd.errors import InvalidArgument

SHORTEST_BANDWIDTH_BITS = 8_000
LONGEST_LATENCY_MS = 60_000
LONGEST_DURATION_MS = 366 * 24 * 3600 * 1000
DNS_ANSWERS = ("none", "servfail", "nxdomain", "slow")
DEFAULT_DNS_DELAY_MS = 2000
_MOST_DNS_NAMES = 100
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}\Z")
_DNS_NAME = re.compile(r"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\Z")


class LinkFault(ApiStruct, frozen=True, omit_defaults=True):
    """What happens to the packets of a link; 0 leaves that as it is."""

    latency_ms: float = 0
    jitter_ms: float = 0
    loss_percent: float = 0
    duplicate_percent: float = 0
    reorder_percent: float = 0
    bandwidth_bits: int = 0  # per second

    @property
    def needs_emulator(self) -> bool:
        """Whether more than the bandwidth changes, which takes the kernel's netem."""
        return any(
            (
                self.latency_ms,
                self.loss_percent,
                self.duplicate_percent,
                self.reorder_percent,
            )
        )


class DnsFault(ApiStruct, frozen=True, omit_defaults=True):
    """What containers get for questions about ``names`` (all, where there are none)."""

    answer: str = ""
    delay_ms: float = 0
    names: list[str] | None = None


class FaultRequest(ApiStruct, frozen=True):
    """Body of ``POST /desk/faults``: containers by name or ID, one of the four kinds of fault."""

    name: str = ""
    network: str = ""
    partition: list[list[str]] | None = None
    between: list[str] | None = None
    from_: list[str] | None = field(default=None, name="From")
    to: list[str] | None = None
    block: bool = False
    link: LinkFault | None = None
    dns: DnsFault | None = None
    duration_ms: int = 0


class FaultRecord(ApiStruct, frozen=True):
    """A fault in the database; containers by their IDs. ``ends_ns`` 0: until it is healed."""

    name: str
    network_id: str
    created_ns: int
    ends_ns: int = 0
    partition: list[list[str]] = field(default_factory=list)
    between: list[str] = field(default_factory=list)
    from_: list[str] = field(default_factory=list, name="From")
    to: list[str] = field(default_factory=list)
    block: bool = False
    link: LinkFault | None = None
    dns: DnsFault | None = None

    @property
    def kind(self) -> str:
        """``partition``, ``block``, ``link`` or ``dns``."""
        if self.partition:
            return "partition"
        if self.block:
            return "block"
        return "link" if self.link is not None else "dns"

    @property
    def containers(self) -> set[str]:
        """The IDs of the containers that the fault names."""
        groups = (*self.partition, self.between, self.from_, self.to)
        return {container for group in groups for container in group}


class Fault(ApiStruct, frozen=True):
    """A fault as the API shows it; containers by name. ``remaining_ms`` is there because the
    clocks of engine and client may differ; 0 for one without an end."""

    name: str
    kind: str
    network: str
    network_id: str = field(name="NetworkID")
    created: str
    ends: str
    remaining_ms: int
    partition: list[list[str]]
    between: list[str]
    from_: list[str] = field(name="From")
    to: list[str]
    block: bool
    link: LinkFault | None
    dns: DnsFault | None


class FaultRecords(Protocol):
    """Where faults are kept, by name; ``delete`` is idempotent."""

    def all(self) -> list[FaultRecord]: ...
    def insert(self, record: FaultRecord) -> None: ...
    def put(self, record: FaultRecord) -> None: ...
    def delete(self, key: str) -> Any: ...


# --- rules --------------------------------------------------------------------------------------


def check(request: FaultRequest) -> FaultRequest:
    """Return the request in normal form. Raises ``InvalidArgument`` for what cannot be."""
    if request.name and not _NAME.match(request.name):
        raise InvalidArgument(
            f"invalid fault name {request.name!r}: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, "
            "64 at most"
        )
    if not 0 <= request.duration_ms <= LONGEST_DURATION_MS:
        raise InvalidArgument(
            f"a fault cannot last {request.duration_ms} ms: give up to one year, or 0 for no end"
        )
    kinds = [
        name
        for name, given in (
            ("a partition", request.partition),
            ("a block", request.block),
            ("link properties", request.link is not None and request.link != LinkFault()),
            ("a DNS answer", request.dns is not None),
        )
        if given
    ]
    if len(kinds) != 1:
        found = " and ".join(kinds) if kinds else "nothing"
        raise InvalidArgument(
            "a fault is either a partition, a block, link properties (latency, loss and so on) "
            f"or a DNS answer, but {found} was asked for: make one fault for each"
        )
    _check_selection(request)
    changes: dict[str, Any] = {}
    if request.link is not None and kinds == ["link properties"]:
        _check_link(request.link)
    else:
        changes["link"] = None
    if request.dns is not None:
        changes["dns"] = _checked_dns(request.dns)
    return msgspec.structs.replace(request, **changes)


def _check_selection(request: FaultRequest) -> None:
    if request.partition and (request.between or request.from_ or request.to):
        raise InvalidArgument(
            "a partition names its groups only: leave out the containers between, from or to which"
        )
    if any(not group for group in request.partition or ()):
        raise InvalidArgument("a group of a partition is empty: name its containers")
    if request.between and (request.from_ or request.to):
        raise InvalidArgument(
            "containers between which, and from or to which, cannot both be named: choose one"
        )
    if request.between and len(request.between) < 2:
        raise InvalidArgument(
            f"between {request.between[0]} and nobody there is no link: name two containers, or "
            "use from and to"
        )
    if request.dns is not None and (request.between or request.to):
        raise InvalidArgument(
            "a DNS fault concerns those who ask: name them with from, or nobody for all"
        )


def _check_link(link: LinkFault) -> None:
    for name, percent in (
        ("loss", link.loss_percent),
        ("duplication", link.duplicate_percent),
        ("reordering", link.reorder_percent),
    ):
        if not 0 <= percent <= 100:
            raise InvalidArgument(f"a {name} of {percent:g} % cannot be: give 0 to 100")
    for name, delay_ms in (("latency", link.latency_ms), ("jitter", link.jitter_ms)):
        if not 0 <= delay_ms <= LONGEST_LATENCY_MS:
            raise InvalidArgument(
                f"a {name} of {delay_ms:g} ms cannot be: give up to {LONGEST_LATENCY_MS} ms"
            )
    if link.jitter_ms > link.latency_ms:
        raise InvalidArgument(
            f"a jitter of {link.jitter_ms:g} ms needs at least as much latency, because no packet "
            "arrives before it was sent"
        )
    if link.reorder_percent and not link.latency_ms:
        raise InvalidArgument(
            "reordering needs latency: the packets that overtake are those that do not wait"
        )
    if link.bandwidth_bits and not SHORTEST_BANDWIDTH_BITS <= link.bandwidth_bits < 1 << 40:
        raise InvalidArgument(
            f"a bandwidth of {link.bandwidth_bits} bits per second cannot be: give at least "
            f"{SHORTEST_BANDWIDTH_BITS}"
        )


def _checked_dns(dns: DnsFault) -> DnsFault:
    if dns.answer not in DNS_ANSWERS:
        raise InvalidArgument(
            f"invalid DNS answer {dns.answer!r}: give {', '.join(DNS_ANSWERS[:-1])} or "
            f"{DNS_ANSWERS[-1]}"
        )
    if dns.answer != "slow" and dns.delay_ms:
        raise InvalidArgument("only slow DNS answers have a delay: leave it out")
    if not 0 <= dns.delay_ms <= LONGEST_LATENCY_MS:
        raise InvalidArgument(
            f"a delay of {dns.delay_ms:g} ms cannot be: give up to {LONGEST_LATENCY_MS} ms"
        )
    names = [name.lower().rstrip(".") for name in dns.names or ()]
    if len(names) > _MOST_DNS_NAMES:
        raise InvalidArgument(f"a DNS fault takes up to {_MOST_DNS_NAMES} names: make several")
    for name in names:
        if len(name) > 253 or not _DNS_NAME.match(name):
            raise InvalidArgument(
                f"invalid DNS name {name!r}: write it as in db.example or *.example"
            )
    delay_ms = dns.delay_ms
    if dns.answer == "slow" and not delay_ms:
        delay_ms = DEFAULT_DNS_DELAY_MS
    return msgspec.structs.replace(dns, names=names or None, delay_ms=delay_ms)


def without_container(record: FaultRecord, container_id: str) -> FaultRecord | None:
    """Return what is left of a fault when a container is gone for good; ``None``: nothing."""
    if container_id not in record.containers:
        return record

    def left(group: list[str]) -> list[str]:
        return [item for item in group if item != container_id]

    groups = [left(group) for group in record.partition]
    sides = [(old, left(old)) for old in (record.between, record.from_, record.to)]
    between, from_, to = (new for _, new in sides)
    lost_a_side = any(old and not new for old, new in sides)
    if lost_a_side or len(between) == 1 or any(not group for group in groups):
        groups = [group for group in groups if group]
        # Three groups of which one has gone still are two that cannot see each other.
        if len(groups) < 2:
            return None
    return msgspec.structs.replace(record, partition=groups, between=between, from_=from_, to=to)
