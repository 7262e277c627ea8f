"""Which questions a DNS fault concerns. Pure. Source: RFC 1035, section 4.1."""

from __future__ import annotations

from deskd.domain.fault import DnsFault

_HEADER_BYTES = 12
_LONGEST_LABEL = 63
_RESPONSE_BIT = 0x80


def is_question(packet: bytes) -> bool:
    """Tell whether a packet is a DNS question, as far as its header says."""
    return len(packet) >= _HEADER_BYTES and not packet[2] & _RESPONSE_BIT


def question_name(packet: bytes) -> str:
    """Return the name that a DNS packet asks for, in lower case without the last dot; empty where
    there is none."""
    labels: list[bytes] = []
    place = _HEADER_BYTES
    while place < len(packet):
        length = packet[place]
        if length == 0:
            return b".".join(labels).decode("ascii", "replace").lower()
        if length > _LONGEST_LABEL or place + 1 + length >= len(packet):
            break
        labels.append(packet[place + 1 : place + 1 + length])
        place += 1 + length
    return ""


def concerns(fault: DnsFault, name: str) -> bool:
    """Tell whether a fault concerns a name: ``*.example`` means every name below ``example``."""
    if not fault.names:
        return True
    return any(
        name.endswith(wanted[1:]) if wanted.startswith("*.") else name == wanted
        for wanted in fault.names
    )
