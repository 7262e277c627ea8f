"""The table of names and the answers made from it; no sockets."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address, IPv6Address

import msgspec
import pytest
from dnslib import EDNS0, QTYPE, RR, A, DNSHeader, DNSQuestion, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from deskd.network.name_answers import FORWARD, Answers, server_failure
from deskd.network.name_table import NamedEndpoint, NameTable


def endpoint(
    container: str,
    network: str,
    last: int,
    *names: str,
    links: tuple[tuple[str, str], ...] = (),
    leads_out: bool = True,
) -> NamedEndpoint:
    return NamedEndpoint(
        container_id=container,
        container_name=container,
        network_id=f"id-{network}",
        network_name=network,
        addresses=(IPv4Address(f"10.0.0.{last}"),),
        names=(container, *names),
        links=links,
        leads_out=leads_out,
    )


@pytest.fixture
def table() -> NameTable:
    found = NameTable()
    found.add(endpoint("web", "front", 1, "www"))
    found.add(endpoint("web", "back", 11))
    found.add(endpoint("db", "back", 12, "data", links=(("store", "web"),)))
    found.add(endpoint("db2", "back", 13, "data"))
    found.add(endpoint("other", "else", 21, leads_out=False))
    return found


def looked_up(table: NameTable, container: str, name: str) -> list[str]:
    return [str(address) for address in table.look_up(container, name)]


def test_names_belong_to_networks(table: NameTable) -> None:
    assert looked_up(table, "db", "web") == ["10.0.0.11"]
    assert looked_up(table, "web", "www") == ["10.0.0.1"]
    assert looked_up(table, "web", "db") == ["10.0.0.12"]
    assert looked_up(table, "db", "www") == []
    assert looked_up(table, "other", "db") == []
    assert looked_up(table, "nobody", "db") == []
    assert looked_up(table, "web", "db.back") == ["10.0.0.12"]
    assert looked_up(table, "web", "www.back") == []
    assert looked_up(table, "db", "www.front") == []


def test_a_shared_name_begins_with_another_address_each_time(table: NameTable) -> None:
    answers = Answers(table)
    assert looked_up(table, "web", "data") == ["10.0.0.12", "10.0.0.13"]
    for asker in ("web", "db"):  # who asks in turn with another has turns of its own
        asked = []
        for _ in range(6):
            found = ask(answers, asker, "data")
            asked.append(tuple(str(record.rdata) for record in found.rr))
            ask(answers, "db2", "data")
        assert set(asked) == {("10.0.0.12", "10.0.0.13"), ("10.0.0.13", "10.0.0.12")}
        assert all(one != other for one, other in itertools.pairwise(asked))


def test_links_are_names_of_one_container(table: NameTable) -> None:
    assert looked_up(table, "db", "store") == ["10.0.0.11"]
    assert looked_up(table, "db2", "store") == []


def test_reverse_only_within_shared_networks(table: NameTable) -> None:
    assert table.reverse("db", IPv4Address("10.0.0.11")) == "web.back"
    assert table.reverse("db", IPv4Address("10.0.0.1")) == ""
    assert table.reverse("other", IPv4Address("10.0.0.12")) == ""


def test_removal_and_replacement(table: NameTable) -> None:
    table.remove("db", "id-back")
    table.remove("db", "id-back")
    assert looked_up(table, "web", "db") == []
    assert looked_up(table, "web", "data") == ["10.0.0.13"]
    table.add(endpoint("db2", "back", 30, "renamed"))
    assert looked_up(table, "web", "data") == []
    assert looked_up(table, "web", "renamed") == ["10.0.0.30"]


def test_only_internal_networks_lead_nowhere(table: NameTable) -> None:
    assert table.leads_out("web")
    assert not table.leads_out("other")
    assert table.leads_out("nobody")


def ask(
    answers: Answers,
    container: str,
    name: str,
    kind: str = "A",
    *,
    tcp: bool = False,
    edns: int = 0,
) -> DNSRecord:
    question = DNSRecord.question(name, kind)
    if edns:
        question.add_ar(EDNS0(udp_len=edns))
    answer = answers.answer(container, bytes(question.pack()), over_tcp=tcp)
    assert isinstance(answer, bytes), answer
    found = DNSRecord.parse(answer)
    assert found.header.id == question.header.id
    assert found.q.qname == question.q.qname
    return found


def test_answers_and_the_absence_of_other_records(table: NameTable) -> None:
    answers = Answers(table)
    found = ask(answers, "db", "WEB.")
    assert [str(record.rdata) for record in found.rr] == ["10.0.0.11"]
    assert str(found.rr[0].rname) == "WEB."
    for kind in ("AAAA", "MX", "HTTPS"):
        empty = ask(answers, "db", "web", kind)
        assert (empty.header.rcode, empty.rr) == (0, [])
    found = ask(answers, "db", "11.0.0.10.in-addr.arpa", "PTR")
    assert str(found.rr[0].rdata) == "web.back."
    unknown = bytes(DNSRecord.question("example.org").pack())
    assert answers.answer("db", unknown, over_tcp=False) is FORWARD
    assert ask(answers, "db", "web", edns=4096).ar[0].rtype == QTYPE.OPT


def test_each_family_has_its_records_and_its_reverse_names() -> None:
    table = NameTable()
    four = IPv4Address("10.0.0.1")
    six = IPv6Address("fd00::1")
    table.add(msgspec.structs.replace(endpoint("web", "dual", 1), addresses=(four, six)))
    answers = Answers(table)
    assert [str(r.rdata) for r in ask(answers, "web", "web", "A").rr] == ["10.0.0.1"]
    assert [str(r.rdata) for r in ask(answers, "web", "web", "AAAA").rr] == ["fd00::1"]
    assert {r.rtype for r in ask(answers, "web", "web", "ANY").rr} == {QTYPE.A, QTYPE.AAAA}
    found = ask(answers, "web", six.reverse_pointer, "PTR")
    assert str(found.rr[0].rdata) == "web.dual."
    for broken in ("1.0.ip6.arpa", "x." * 32 + "ip6.arpa", "300.0.0.10.in-addr.arpa"):
        question = bytes(DNSRecord.question(broken, "PTR").pack())
        assert answers.answer("web", question, over_tcp=False) is FORWARD


def test_kept_answers_follow_the_table() -> None:
    # The answers do not exist yet.
    table = NameTable(lambda: answers.forget())  # noqa: PLW0108
    answers = Answers(table)
    table.add(endpoint("web", "back", 1))
    assert str(ask(answers, "web", "web").rr[0].rdata) == "10.0.0.1"
    assert str(ask(answers, "web", "web").rr[0].rdata) == "10.0.0.1"
    table.add(endpoint("web", "back", 2))
    assert str(ask(answers, "web", "web").rr[0].rdata) == "10.0.0.2"


def test_what_does_not_fit_is_said_to_be_cut_off() -> None:
    table = NameTable()
    for last in range(1, 101):
        table.add(endpoint(f"c{last}", "big", last, "all"))
    answers = Answers(table)
    small = ask(answers, "c1", "all")
    assert small.header.tc == 1
    assert len(small.pack()) <= 512
    assert 25 <= len(small.rr) < 100
    larger = ask(answers, "c1", "all", edns=1232)
    assert len(small.rr) < len(larger.rr) < 100
    whole = ask(answers, "c1", "all", tcp=True)
    assert (whole.header.tc, len(whole.rr)) == (0, 100)


def test_questions_that_are_none(table: NameTable) -> None:
    answers = Answers(table)
    good = bytes(DNSRecord.question("web").pack())
    response = bytes(DNSRecord(DNSHeader(qr=1)).pack())
    assert answers.answer("db", b"", over_tcp=False) is None
    assert answers.answer("db", good[:11], over_tcp=False) is None
    assert answers.answer("db", response, over_tcp=False) is None

    def code(packet: bytes) -> int:
        answer = answers.answer("db", packet, over_tcp=False)
        assert isinstance(answer, bytes)
        assert answer[:2] == packet[:2]
        return answer[3] & 0xF

    assert code(good[:-3]) == 1  # FORMERR
    two = DNSRecord(questions=[DNSQuestion("web"), DNSQuestion("db")])
    assert code(bytes(two.pack())) == 1
    assert code(bytes(DNSRecord(DNSHeader(opcode=5), q=DNSQuestion("web")).pack())) == 4
    assert code(bytes(DNSRecord(q=DNSQuestion("version.bind", QTYPE.TXT, 3)).pack())) == 5
    assert DNSRecord.parse(server_failure(good)).header.rcode == 2
    assert server_failure(good[:-3])[3] & 0xF == 2


@given(st.binary(min_size=0, max_size=600))
def test_no_packet_breaks_the_server(packet: bytes) -> None:
    table = NameTable()
    table.add(endpoint("web", "front", 1))
    answer = Answers(table).answer("web", packet, over_tcp=False)
    if isinstance(answer, bytes):
        assert answer[:2] == packet[:2]
        server_failure(packet)


@given(st.lists(st.tuples(st.integers(2, 60), st.integers(0, 255)), max_size=8))
def test_no_damaged_question_breaks_the_server(changes: list[tuple[int, int]]) -> None:
    question = DNSRecord.question("web.front")
    question.add_ar(EDNS0(udp_len=1232))
    question.add_auth(RR("x", QTYPE.A, rdata=A("192.0.2.1")))
    packet = bytearray(question.pack())
    for position, value in changes:
        packet[position % len(packet)] = value
    table = NameTable()
    table.add(endpoint("web", "front", 1))
    Answers(table).answer("web", bytes(packet), over_tcp=True)
    server_failure(bytes(packet))
