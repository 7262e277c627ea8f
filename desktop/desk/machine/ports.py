"""Ports on 127.0.0.1 that belong to machines."""

from __future__ import annotations

import zlib
from collections.abc import Collection

from desk.errors import DriverError

FIRST, LAST = 20200, 29999
"""Below the ranges from which systems take ports for outgoing connections."""


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As QEMU does: a port whose last connection is in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose(name: str, avoid: Collection[int]) -> int:
    """Return a free port for machine ``name``: the same one whenever it can be."""
    count = LAST - FIRST + 1
    start = zlib.crc32(name.encode())
    for offset in range(count):
        port = FIRST + (start + offset) % count
        if port not in avoid and is_free(port):
            return port
    raise DriverError(
        f"no port between {FIRST} and {LAST} is free on 127.0.0.1",
        hint="Stop a program that listens on so many ports.",
    )
