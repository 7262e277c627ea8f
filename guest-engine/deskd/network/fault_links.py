"""Which links faults concern, and what becomes of them. Pure: no input or output.

A link leads from one member of a network to another. Members come and go; what holds of the links
is computed anew from all faults and all members, so that it is right for whoever joins later.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import permutations

from deskd.domain.fault import FaultRecord, LinkFault
from deskd.errors import ResourceExhausted
from deskd.record import Record
from deskd.record import field as record_field

MOST_LINKS = 4096
"""How many links of one network may have properties of their own: each is a queue in the kernel."""


class Member(Record):
    """A container's place in a network: the end of its link on the machine, its addresses."""

    container_id: str
    interface: str
    index: int
    addresses: tuple[str, ...] = ()


Link = tuple[str, str]
"""Source and target: container IDs in ``pairs``, interfaces in ``Effects``."""


class Effects(Record):
    """What the kernel has to do, for all networks of an engine."""

    severed: frozenset[Link] = frozenset()
    severed_addresses: frozenset[tuple[str, str]] = frozenset()
    shaped: Mapping[Link, LinkFault] = record_field(default_factory=dict)


def pairs(fault: FaultRecord, members: Collection[str]) -> Iterator[Link]:
    """Yield the links between ``members`` (container IDs) that a fault concerns."""
    if fault.partition:
        yield from _across(fault.partition, members)
        return
    if fault.between:
        sources = targets = set(fault.between)
    else:
        sources, targets = set(fault.from_ or members), set(fault.to or members)
    for source, target in permutations(members, 2):
        if source in sources and target in targets:
            yield source, target


def _across(groups: Sequence[Sequence[str]], members: Collection[str]) -> Iterator[Link]:
    if len(groups) == 1:  # apart from everyone else, whoever that is now
        groups = [groups[0], [item for item in members if item not in groups[0]]]
    for one, other in permutations(groups, 2):
        for source in one:
            for target in other:
                if source in members and target in members:
                    yield source, target


def joined(one: LinkFault, other: LinkFault) -> LinkFault:
    """Return what two faults do to a link together: delays add up, chances combine, and the
    smaller bandwidth remains."""

    def chance(first: float, second: float) -> float:
        return 100 - (100 - first) * (100 - second) / 100

    bandwidths = [b for b in (one.bandwidth_bits, other.bandwidth_bits) if b]
    return LinkFault(
        latency_ms=one.latency_ms + other.latency_ms,
        jitter_ms=one.jitter_ms + other.jitter_ms,
        loss_percent=chance(one.loss_percent, other.loss_percent),
        duplicate_percent=chance(one.duplicate_percent, other.duplicate_percent),
        reorder_percent=chance(one.reorder_percent, other.reorder_percent),
        bandwidth_bits=min(bandwidths, default=0),
    )


def effects(faults: Iterable[FaultRecord], members: Mapping[str, Sequence[Member]]) -> Effects:
    """Compute what holds of all links; ``members`` by network ID.

    Raises ``ResourceExhausted`` where there would be too many queues.
    """
    severed: set[Link] = set()
    addresses: set[tuple[str, str]] = set()
    shaped: dict[Link, LinkFault] = {}
    for fault in faults:
        if fault.dns is not None:
            continue
        there = {member.container_id: member for member in members.get(fault.network_id, ())}
        for source_id, target_id in pairs(fault, there):
            source, target = there[source_id], there[target_id]
            link = source.interface, target.interface
            if fault.link is None:
                severed.add(link)
                addresses.update(
                    (one, other)
                    for one in source.addresses
                    for other in target.addresses
                    if (":" in one) == (":" in other)
                )
            else:
                shaped[link] = joined(shaped[link], fault.link) if link in shaped else fault.link
    # Nothing goes over a severed link that could be late.
    shaped = {link: fault for link, fault in shaped.items() if link not in severed}
    if len(shaped) > MOST_LINKS:
        raise ResourceExhausted(
            f"network faults would concern {len(shaped)} links between containers, and at most "
            f"{MOST_LINKS} can be had: name the containers that matter"
        )
    return Effects(frozenset(severed), frozenset(addresses), shaped)
