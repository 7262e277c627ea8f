"""The sockets of a container's name server, made inside the container's network namespace.

Containers ask 127.0.0.11, port 53, as they do with Docker. The sockets listen on another port, to
which one rule in the namespace leads: port 53 stays free for a name server that the container
itself may run on every address. For the launcher's side: standard library only. The messages are
those of linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

ADDRESS = "127.0.0.11"
PORT = 4
"""Where the sockets really are; IANA never assigned this port to anything."""
_DNS_PORT = 53
_BACKLOG = 128

_HEADER = struct.Struct("=IHHII")
_NLMSG_ERROR = 2
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NFTABLES = 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 3, 6
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_NESTED = 0x8000
_IPV4 = 2
_HOOK_OUTPUT, _PRIORITY_DNAT = 3, -100
_REGISTER_1 = 1
_META_L4PROTO = 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_TABLE, _CHAIN = b"desk_names\0", b"output\0"


def make() -> tuple[socket.socket, socket.socket]:
    """Make the UDP socket and the listening TCP socket, and lead port 53 to them.

    Raises ``OSError``; ``FileExistsError`` where this namespace has them already.
    """
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        for one in (udp, tcp):
            one.setblocking(False)
        udp.bind((ADDRESS, PORT))
        tcp.bind((ADDRESS, PORT))
        tcp.listen(_BACKLOG)
        _send(_REDIRECTION)
    except OSError as error:
        udp.close()
        tcp.close()
        if error.errno == errno.EADDRINUSE:
            raise FileExistsError(error.errno, "the name server's port is taken") from error
        raise
    return udp, tcp


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def _nest(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(attributes))


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!i", value))


def _message(kind: int, flags: int, number: int, family: int, body: bytes) -> bytes:
    group = _NFTABLES if kind in (_BATCH_BEGIN, _BATCH_END) else 0
    payload = struct.pack("!BBH", family, 0, group) + body
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags | _REQUEST, number, 0) + payload


def _expression(name: bytes, *attributes: bytes) -> bytes:
    return _nest(1, _attribute(1, name + b"\0"), _nest(2, *attributes))


def _load_payload(header: int, offset: int, length: int) -> bytes:
    return _expression(
        b"payload",
        *(_number(1, _REGISTER_1), _number(2, header), _number(3, offset), _number(4, length)),
    )


def _equals(value: bytes) -> bytes:
    data = _nest(3, _attribute(1, value))
    return _expression(b"cmp", _number(1, _REGISTER_1), _number(2, 0), data)


def _rule(protocol: int) -> bytes:
    """``meta l4proto PROTOCOL ip daddr 127.0.0.11 th dport 53 dnat to :PORT``"""
    expressions = (
        _expression(b"meta", _number(1, _REGISTER_1), _number(2, _META_L4PROTO)),
        _equals(bytes([protocol])),
        _load_payload(_NETWORK_HEADER, 16, 4),
        _equals(socket.inet_aton(ADDRESS)),
        _load_payload(_TRANSPORT_HEADER, 2, 2),
        _equals(struct.pack("!H", _DNS_PORT)),
        _expression(
            b"immediate",
            _number(1, _REGISTER_1),
            _nest(2, _attribute(1, struct.pack("!H", PORT))),
        ),
        _expression(b"nat", _number(1, 1), _number(2, _IPV4), _number(5, _REGISTER_1)),
    )
    return _attribute(1, _TABLE) + _attribute(2, _CHAIN) + _nest(4, *expressions)


def _redirection() -> bytes:
    chain = (
        _attribute(1, _TABLE)
        + _attribute(3, _CHAIN)
        + _nest(4, _number(1, _HOOK_OUTPUT), _number(2, _PRIORITY_DNAT))
        + _attribute(7, b"nat\0")
    )
    kind = _NFTABLES << 8
    return b"".join(
        (
            _message(_BATCH_BEGIN, 0, 1, 0, b""),
            _message(kind | _NEW_TABLE, _CREATE, 2, _IPV4, _attribute(1, _TABLE)),
            _message(kind | _NEW_CHAIN, _CREATE, 3, _IPV4, chain),
            _message(kind | _NEW_RULE, _CREATE | _APPEND, 4, _IPV4, _rule(socket.IPPROTO_UDP)),
            _message(
                kind | _NEW_RULE, _CREATE | _APPEND | _ACK, 5, _IPV4, _rule(socket.IPPROTO_TCP)
            ),
            _message(_BATCH_END, 0, 6, 0, b""),
        )
    )


_REDIRECTION = _redirection()
"""One transaction: a table, its chain and the two rules. The fifth message is acknowledged."""


def _send(batch: bytes) -> None:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, 12) as channel:  # NETLINK_NETFILTER
        channel.bind((0, 0))
        channel.send(batch)
        while True:
            data = channel.recv(65536)
            while len(data) >= _HEADER.size:
                length, what, _flags, _sequence, _port = _HEADER.unpack_from(data)
                if what == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, _HEADER.size)[0]
                    if code:
                        raise OSError(code, f"nftables: {os.strerror(code)}")
                    return
                data = data[(length + 3) & ~3 :]
