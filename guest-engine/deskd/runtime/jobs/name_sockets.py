"""The job ``name_sockets``: make the sockets of a running container's name server.

A container that starts in a network with a name server is born with them; this is for one that is
put into such a network later.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from deskd.errors import SystemFailure
from deskd.kernel import name_sockets
from deskd.runtime.jobs.enter import enter_container


def run(arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Argument: ``pid``. ``fds[0]`` is a connection to the container's monitor, which is given
    the sockets; the job ends when it has them."""
    with socket.socket(fileno=fds[0]) as monitor:
        monitor.setblocking(True)
        try:
            enter_container(int(arguments["pid"]), ("net",))
            udp, tcp = name_sockets.make()
        except FileExistsError:
            return  # they are there, from an earlier time in such a network
        except OSError as error:
            raise SystemFailure(
                f"the container's name server cannot be set up: {error.strerror}"
            ) from error
        order = json.dumps({"op": "keep-names"}).encode() + b"\n"
        socket.send_fds(monitor, [order], [udp.fileno(), tcp.fileno()])
        monitor.recv(4096)
