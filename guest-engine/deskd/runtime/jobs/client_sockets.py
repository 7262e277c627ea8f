"""The job ``client_sockets``: make sockets inside a container's network namespace.

A socket belongs to the namespace that it is made in, so the engine can connect it afterwards to
what listens in the container alone.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from deskd.runtime.jobs.enter import enter_container


def run(arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Arguments: ``pid``, ``stream`` (TCP instead of UDP) and ``count``. The sockets go out by
    ``fds[0]``, in one message."""
    kind = socket.SOCK_STREAM if arguments["stream"] else socket.SOCK_DGRAM
    with socket.socket(fileno=fds[0]) as receiver:
        enter_container(int(arguments["pid"]), ("net",))
        made = [socket.socket(socket.AF_INET, kind) for _ in range(int(arguments["count"]))]
        socket.send_fds(receiver, [b"\0"], [one.fileno() for one in made])
