"""Channels to TCP addresses as they go over the wire (RFC 4254, 5 and 7.2)."""

from __future__ import annotations

import struct

from desk.ssh import direct
from desk.ssh.channel import OpenFailure
from desk.ssh.direct import DirectChannel


def opened(*, window: int = 1000, largest: int = 32768) -> DirectChannel:
    channel = DirectChannel(direct.FIRST_NUMBER)
    channel.confirmed(memoryview(struct.pack("!III", 7, window, largest)))
    return channel


def test_the_request_names_where_it_leads() -> None:
    payload = DirectChannel(direct.FIRST_NUMBER + 5).ask("172.17.0.2", 8080)
    window = struct.pack("!II", 4 << 20, 1 << 17)
    assert payload.head == (
        b"\x5a\0\0\0\x0cdirect-tcpip\x01\0\0\x05" + window
        + b"\0\0\0\x0a172.17.0.2\0\0\x1f\x90\0\0\0\x09127.0.0.1\0\0\0\0"
    )  # fmt: skip


def test_numbers_go_round_and_stay_out_of_paramikos_way() -> None:
    assert direct.next_number(direct.FIRST_NUMBER) == direct.FIRST_NUMBER + 1
    assert direct.next_number((1 << 32) - 1) == direct.FIRST_NUMBER


def test_the_answer_says_how_much_may_be_sent() -> None:
    channel = opened(window=1000, largest=1 << 20)
    assert (channel.room, channel.most_data_bytes) == (1000, 1 << 17)  # no larger than our own
    channel.take_room(memoryview(b"\0\0\1\0"))
    assert channel.room == 1256
    assert channel.data(b"hi").head == b"\x5e\0\0\0\x07\0\0\0\x02"


def test_room_is_made_once_it_is_worth_a_message() -> None:
    channel = opened()
    assert channel.make_room(400_000) is None
    payload = channel.make_room(100_000)
    assert payload is not None
    assert payload.head == b"\x5d\0\0\0\x07" + struct.pack("!I", 500_000)
    assert channel.make_room(1) is None
    channel.eof_received = True
    assert channel.make_room(1 << 22) is None


def test_an_end_comes_once_and_before_the_closing() -> None:
    channel = opened()
    assert [payload.head for payload in channel.end()] == [b"\x60\0\0\0\x07"]
    assert channel.end() == []
    assert [payload.head for payload in channel.shut()] == [b"\x61\0\0\0\x07"]
    assert channel.shut() == []
    assert [payload.head[0] for payload in opened().shut()] == [direct.EOF, direct.CLOSE]


def test_requests_are_declined_where_an_answer_is_wanted() -> None:
    request = b"\0\0\0\x04what"
    assert opened().decline(memoryview(request + b"\0")) == []
    (answer,) = opened().decline(memoryview(request + b"\x01"))
    assert answer.head == b"\x64\0\0\0\x07"


def test_a_refusal_has_its_reason_and_text() -> None:
    refusal = direct.refusal(memoryview(b"\0\0\0\x02\0\0\0\x04nope\0\0\0\0"))
    assert (refusal.failure, refusal.text) == (OpenFailure.CONNECT_FAILED, "nope")
    odd = direct.refusal(memoryview(b"\0\0\0\x63\0\0\0\x01\xff\0\0\0\0"))
    assert (odd.failure, odd.text) == (OpenFailure.NO_ANSWER, "\ufffd")
