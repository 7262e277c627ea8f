"""Answers to containers' DNS questions about each other. Source: RFC 1035, RFC 6891 (EDNS).

dnslib parses and writes the messages; it is imported with this module, which the engine loads when
the first container with a name server runs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from dnslib import AAAA, CLASS, EDNS0, PTR, QTYPE, RR, A, DNSError, DNSHeader, DNSRecord
from dnslib.dns import OPCODE, RCODE

from deskd.domain.network import LAPTOP_NAMES
from deskd.network.ipam import Address
from deskd.network.name_table import NameTable

HEADER_BYTES = 12
UDP_BYTES = 512
"""What a client takes that says nothing else (RFC 1035)."""
_OWN_EDNS_BYTES = 1232
_TCP_BYTES = 65535
_RESPONSE_BIT = 0x80
_RECORD_BYTES = {4: 16, 6: 28}
"""Of an address record whose name points to the question."""
_REVERSE_LABELS = {".in-addr.arpa": 4, ".ip6.arpa": 32}
TTL_S = 5
"""Short, because containers come and go and an answer costs next to nothing."""
_CACHE_ENTRIES = 4096
_VARIANTS = 16


class Forward:
    """The verdict that others know the answer."""


FORWARD = Forward()


class _Kept:
    """The answers to one question of one container: as many as there are addresses that can come
    first, in turn."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.packets: list[bytes] = []
        self.wanted = 1
        self.turn = -1

    def next(self) -> bytes:
        """Return the answer whose turn it is."""
        self.turn += 1
        return self.packets[self.turn % self.wanted]


class Answers:
    """Answers questions from the table of names. Where several containers share one, each answer
    begins with another. ``laptop`` tells the address of ``LAPTOP_NAMES``."""

    def __init__(
        self, table: NameTable, laptop: Callable[[], Address | None] = lambda: None
    ) -> None:
        self._table = table
        self._laptop = laptop
        self._cache: dict[tuple[str, bool, bytes], _Kept] = {}
        self._turn = 0

    def forget(self) -> None:
        """Drop what was kept: names or addresses have changed."""
        self._cache.clear()

    def answer(self, container_id: str, packet: bytes, *, over_tcp: bool) -> bytes | Forward | None:
        """Answer a packet. ``None``: it is no question, say nothing."""
        if len(packet) < HEADER_BYTES or packet[2] & _RESPONSE_BIT:
            return None
        key = (container_id, over_tcp, packet[2:])
        kept = self._cache.get(key)
        if kept is not None and len(kept.packets) == kept.wanted:
            return packet[:2] + kept.next()
        try:
            question = DNSRecord.parse(packet)
        except DNSError:
            return failure(packet, RCODE.FORMERR)
        if kept is None:
            self._turn += 1
            kept = _Kept(self._turn)
        answer = self._answer(container_id, packet, question, kept, over_tcp=over_tcp)
        if isinstance(answer, bytes) and kept.packets:
            if len(self._cache) >= _CACHE_ENTRIES:
                self._cache.clear()
            self._cache[key] = kept
        return answer

    def _answer(
        self,
        container_id: str,
        packet: bytes,
        question: DNSRecord,
        kept: _Kept,
        *,
        over_tcp: bool,
    ) -> bytes | Forward:
        if question.header.opcode != OPCODE.QUERY:
            return failure(packet, RCODE.NOTIMP)
        if len(question.questions) != 1:
            return failure(packet, RCODE.FORMERR)
        if question.q.qclass != CLASS.IN:
            return failure(packet, RCODE.REFUSED)
        name = b".".join(question.q.qname.label).decode("ascii", "replace").lower()
        reply = _reply_to(question)
        if question.q.qtype == QTYPE.PTR:
            target = self._reverse(container_id, name)
            if not target:
                return FORWARD
            reply.add_answer(RR(question.q.qname, QTYPE.PTR, ttl=TTL_S, rdata=PTR(target)))
        else:
            addresses = self._table.look_up(container_id, name) or self._to_laptop(
                container_id, name
            )
            if not addresses:
                return FORWARD
            # Of a name that is known here all is known: there are no records of other types.
            addresses = tuple(
                address for address in addresses if question.q.qtype in _types(address)
            )
            if addresses:
                kept.wanted = min(len(addresses), _VARIANTS)
                first = (kept.start + len(kept.packets)) % len(addresses)
                addresses = addresses[first:] + addresses[:first]
            for address in _fitting(reply, addresses, _room(question, over_tcp=over_tcp)):
                reply.add_answer(_record(question.q.qname, address))
        packed = bytes(reply.pack())
        kept.packets.append(packed[2:])
        return packed

    def _to_laptop(self, container_id: str, name: str) -> tuple[Address, ...]:
        """Return what a name of the laptop means to a container that can get out."""
        if name not in LAPTOP_NAMES or not self._table.leads_out(container_id):
            return ()
        address = self._laptop()
        return () if address is None else (address,)

    def _reverse(self, container_id: str, name: str) -> str:
        address = _reversed_address(name)
        return self._table.reverse(container_id, address) if address is not None else ""


def _types(address: Address) -> tuple[int, int]:
    """Return the question types that ask for an address."""
    return (QTYPE.A if address.version == 4 else QTYPE.AAAA), QTYPE.ANY


def _record(name: object, address: Address) -> RR:
    rdata = tuple(address.packed)
    if address.version == 4:
        return RR(name, QTYPE.A, ttl=TTL_S, rdata=A(rdata))
    return RR(name, QTYPE.AAAA, ttl=TTL_S, rdata=AAAA(rdata))


def _reversed_address(name: str) -> Address | None:
    """Read the name that asks for an address's name (RFC 1035, RFC 3596)."""
    for ending, count in _REVERSE_LABELS.items():
        labels = name.removesuffix(ending).split(".")
        if not name.endswith(ending) or len(labels) != count:
            continue
        parts = list(reversed(labels))
        if count == 32:
            text = "".join(parts)
            return ipaddress.IPv6Address(bytes.fromhex(text)) if _is_hex(text) else None
        try:
            return ipaddress.IPv4Address(".".join(parts))
        except ValueError:
            return None
    return None


def _is_hex(text: str) -> bool:
    return len(text) == 32 and set(text) <= set("0123456789abcdef")


def failure(packet: bytes, code: int) -> bytes:
    """Answer with an error: the question's ID and flags, nothing else of it."""
    header = DNSHeader(id=int.from_bytes(packet[:2], "big"), qr=1, ra=1, rd=packet[2] & 1)
    header.set_opcode(packet[2] >> 3 & 0xF)
    header.set_rcode(code)
    return bytes(DNSRecord(header).pack())


def server_failure(packet: bytes) -> bytes:
    """Answer that nobody could be asked; the question is repeated, as resolvers check it."""
    return _refusal(packet, RCODE.SERVFAIL)


def no_such_name(packet: bytes) -> bytes:
    """Answer that there is no such name."""
    return _refusal(packet, RCODE.NXDOMAIN)


def _refusal(packet: bytes, code: int) -> bytes:
    try:
        reply = _reply_to(DNSRecord.parse(packet))
    except DNSError:
        return failure(packet, code)
    reply.header.aa = 0
    reply.header.set_rcode(code)
    return bytes(reply.pack())


def _reply_to(question: DNSRecord) -> DNSRecord:
    header = DNSHeader(id=question.header.id, qr=1, aa=1, ra=1, rd=question.header.rd)
    reply = DNSRecord(header, q=question.q if question.questions else None)
    if _edns(question) is not None:
        reply.add_ar(EDNS0(udp_len=_OWN_EDNS_BYTES))
    return reply


def _edns(question: DNSRecord) -> RR | None:
    return next((record for record in question.ar if record.rtype == QTYPE.OPT), None)


def _room(question: DNSRecord, *, over_tcp: bool) -> int:
    if over_tcp:
        return _TCP_BYTES
    edns = _edns(question)
    # The class field of an OPT record says how much the client takes.
    return UDP_BYTES if edns is None else max(UDP_BYTES, min(edns.rclass, _OWN_EDNS_BYTES))


def _fitting(reply: DNSRecord, addresses: tuple[Address, ...], room: int) -> tuple[Address, ...]:
    """Return as many addresses as fit; where that is not all, the reply says so (TC)."""
    room -= len(reply.pack())
    for count, address in enumerate(addresses):
        room -= _RECORD_BYTES[address.version]
        if room < 0:
            reply.header.tc = 1
            return addresses[:count]
    return addresses
