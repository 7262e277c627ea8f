"""Send ready-made rtnetlink requests and check their acknowledgements; standard library only.

For the launcher's side, which cannot afford a netlink library. See netlink(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence

_NLMSG_ERROR = 2
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_NLM_F_REQUEST_ACK = 0x5
_IFF_UP = 1
_HEADER = struct.Struct("=IHHII")


def patch_pid(message: bytes, offset: int, pid: int) -> bytes:
    """Put a PID into its place in a request."""
    return message[:offset] + struct.pack("=I", pid) + message[offset + 4 :]


def loopback_up() -> bytes:
    """Encode the request that sets ``lo`` up; its interface index is 1 in every namespace."""
    body = struct.pack("=BxHiII", 0, 0, 1, _IFF_UP, _IFF_UP)
    return _HEADER.pack(_HEADER.size + len(body), _RTM_NEWLINK, _NLM_F_REQUEST_ACK, 0, 0) + body


def send(messages: Sequence[bytes]) -> None:
    """Send requests into this process's network namespace, one after the other.

    Raises ``OSError`` with the kernel's number for the first one refused; the later ones are not
    sent then. That a link which is to be deleted is not there is no refusal.
    """
    if not messages:
        return
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as channel:
        channel.bind((0, 0))
        for number, message in enumerate(messages, 1):
            numbered = message[:8] + struct.pack("=II", number, 0) + message[16:]
            channel.sendto(numbered, (0, 0))
            try:
                _acknowledge(channel, number)
            except OSError as error:
                (kind,) = struct.unpack_from("=H", message, 4)
                if (kind, error.errno) != (_RTM_DELLINK, errno.ENODEV):
                    raise


def _acknowledge(channel: socket.socket, number: int) -> None:
    while True:
        data = channel.recv(65536)
        while len(data) >= _HEADER.size:
            length, kind, _flags, sequence, _port = _HEADER.unpack_from(data)
            if kind == _NLMSG_ERROR and sequence == number:
                code = -struct.unpack_from("=i", data, _HEADER.size)[0]
                if code:
                    raise OSError(code, f"netlink request {number}: {os.strerror(code)}")
                return
            data = data[(length + 3) & ~3 :]
