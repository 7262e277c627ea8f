"""``deskd dial-stdio``: standard input and output joined to the engine's socket.

The agent starts it once for every connection, so it imports built-in modules only (``_socket``
instead of ``socket`` saves half of the start-up time).
"""

from __future__ import annotations

import _socket
import select
import sys
from posix import close, read, write

DEFAULT_SOCKET = "/run/desk/engine.sock"
BLOCK_BYTES = 256 * 1024
USAGE = "usage: deskd dial-stdio [--host unix://PATH]\n"


def dial_stdio(arguments: list[str]) -> int:
    """Copy both ways until the engine ends its half; return the exit code.

    The end of standard input ends our half only, so that answers still arrive.
    """
    path = DEFAULT_SOCKET
    if arguments:
        host = arguments[1] if len(arguments) == 2 and arguments[0] in ("--host", "-H") else ""
        host = host or arguments[0].removeprefix("--host=")
        if not host.startswith("unix://"):
            sys.stderr.write(USAGE)
            return 2
        path = host[7:] or DEFAULT_SOCKET
    engine = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        engine.connect(path)
    except OSError as error:
        sys.stderr.write(
            f"deskd: the engine does not answer on {path}: {error.strerror}; is it running?\n"
        )
        return 1
    _copy(engine)
    return 0


def _copy(engine: _socket.socket) -> None:
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(engine.fileno(), select.POLLIN)
    # Without events asked for, only hang-ups are told: nobody reads our output any more. A silent
    # stream would otherwise keep a vanished client's process for ever.
    poll.register(1, 0)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == 1:
                return
            try:
                data = read(descriptor, BLOCK_BYTES)
            except ConnectionError:
                return
            if descriptor == 0:
                if not data:
                    poll.unregister(0)
                    engine.shutdown(_socket.SHUT_WR)
                    continue
                try:
                    engine.sendall(data)
                except (BrokenPipeError, ConnectionResetError):
                    poll.unregister(0)  # it reads no more; its answer may still come
            else:
                if not data:
                    close(1)
                    return
                if not _write_all(data):
                    return


def _write_all(data: bytes) -> bool:
    """Return whether somebody still reads."""
    view = memoryview(data)
    while view:
        try:
            view = view[write(1, view) :]
        except BrokenPipeError:
            return False
    return True
