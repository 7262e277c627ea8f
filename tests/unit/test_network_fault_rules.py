"""Which links a network fault concerns, what several do together, and what is left of one."""

from __future__ import annotations

from typing import Any

import pytest
from dnslib import DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from deskd.domain.fault import DnsFault, FaultRecord, LinkFault, without_container
from deskd.network.fault_links import Effects, Member, effects, joined, pairs
from deskd.network.fault_names import concerns, is_question, question_name

MEMBERS = ["a", "b", "c", "d"]


def record(name: str = "f", **fields: Any) -> FaultRecord:
    return FaultRecord(name=name, network_id="net", created_ns=1, **fields)


def both_ways(*links: str) -> set[tuple[str, str]]:
    return {pair for link in links for pair in ((link[0], link[1]), (link[1], link[0]))}


@pytest.mark.parametrize(
    ("fault", "links"),
    [
        (record(partition=[["a"], ["b", "c"]]), both_ways("ab", "ac")),
        (record(partition=[["a", "b"]]), both_ways("ac", "ad", "bc", "bd")),
        (record(partition=[["a"], ["gone"]]), set()),
        (record(block=True, between=["a", "b", "c"]), both_ways("ab", "ac", "bc")),
        (record(block=True, from_=["a"], to=["b"]), {("a", "b")}),
        (record(block=True, from_=["a"]), {("a", "b"), ("a", "c"), ("a", "d")}),
        (record(block=True, to=["a"]), {("b", "a"), ("c", "a"), ("d", "a")}),
        (record(block=True), {(x, y) for x in MEMBERS for y in MEMBERS if x != y}),
    ],
)
def test_links(fault: FaultRecord, links: set[tuple[str, str]]) -> None:
    assert set(pairs(fault, MEMBERS)) == links


def test_several_faults_of_a_link_add_up() -> None:
    one = LinkFault(latency_ms=100, loss_percent=50, bandwidth_bits=1_000_000)
    other = LinkFault(latency_ms=20, jitter_ms=5, loss_percent=50, bandwidth_bits=500_000)
    assert joined(one, other) == LinkFault(
        latency_ms=120, jitter_ms=5, loss_percent=75, bandwidth_bits=500_000
    )
    assert joined(LinkFault(latency_ms=1), LinkFault(bandwidth_bits=9000)).bandwidth_bits == 9000


def test_effects_of_all_faults() -> None:
    members = {
        "net": [
            Member("a", "veth-a", 1, ("10.0.0.2", "fd00::2")),
            Member("b", "veth-b", 2, ("10.0.0.3", "fd00::3")),
        ],
        "other": [Member("a", "veth-x", 3, ("10.1.0.2",)), Member("b", "veth-y", 4)],
    }
    slow = LinkFault(latency_ms=10)
    found = effects(
        [
            record("slow", link=slow),
            record("cut", block=True, from_=["a"], to=["b"]),
            record("names", dns=DnsFault(answer="none")),
        ],
        members,
    )
    assert found == Effects(
        severed=frozenset({("veth-a", "veth-b")}),
        severed_addresses=frozenset({("10.0.0.2", "10.0.0.3"), ("fd00::2", "fd00::3")}),
        shaped={("veth-b", "veth-a"): slow},
    )


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        (record(partition=[["a"], ["b", "c"]]), None),
        (record(partition=[["a", "d"], ["b"]]), record(partition=[["d"], ["b"]])),
        (record(partition=[["a"], ["b"], ["c"]]), record(partition=[["b"], ["c"]])),
        (record(partition=[["a"]]), None),
        (record(block=True, between=["a", "b"]), None),
        (record(block=True, between=["a", "b", "c"]), record(block=True, between=["b", "c"])),
        (record(block=True, from_=["a"], to=["b"]), None),
        (record(block=True, from_=["a", "c"]), record(block=True, from_=["c"])),
        (record(block=True), record(block=True)),
        (record(block=True, from_=["b"], to=["c"]), record(block=True, from_=["b"], to=["c"])),
    ],
)
def test_what_is_left_without_a_container(fault: FaultRecord, left: FaultRecord | None) -> None:
    assert without_container(fault, "a") == left


def test_names_of_questions() -> None:
    packet = DNSRecord.question("DB.Example.org").pack()
    assert (is_question(packet), question_name(packet)) == (True, "db.example.org")
    assert not is_question(DNSRecord.question("x").reply().pack())
    only = DnsFault(answer="none", names=["db", "*.example.org"])
    assert [concerns(only, name) for name in ("db", "a.db", "x.example.org", "example.org")] == [
        *(True, False, True, False)
    ]
    assert concerns(DnsFault(answer="none"), "anything")


@given(st.binary(max_size=80))
def test_any_packet_has_a_name_or_none(packet: bytes) -> None:
    assert question_name(packet) == question_name(packet).lower()
