"""Started by QEMU for each connection of its guest to the address of shared folders.

QEMU gives it that connection as its standard input. The agent gets the connection itself, through
its socket, and this process ends: what is read and written comes by nobody else. It runs as a file,
with the standard library alone, and says nothing: its standard error is the guest's.
"""

from __future__ import annotations

import contextlib
import socket
import sys

_STDIN = 0


def main() -> int:
    """Hand standard input to the agent whose socket is the one argument; 1 where none listens."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as agent:
        agent.connect(sys.argv[1])
        socket.send_fds(agent, [b"\0"], [_STDIN])
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
