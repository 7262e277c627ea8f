"""Ports of this computer for servers that tests start."""

from __future__ import annotations

import random
import socket
from pathlib import Path

# Below the ports that the kernel gives to connections by itself: those would take one away
# between the look here and the server's start.
_FIRST = 10_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """Return a port of 127.0.0.1 that nobody uses now and that no outgoing connection will get."""
    last = int(_EPHEMERAL.read_text().split()[0]) - 1
    while True:
        port = random.SystemRandom().randint(_FIRST, last)
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
