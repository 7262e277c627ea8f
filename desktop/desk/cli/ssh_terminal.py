"""``desk machine ssh`` where OpenSSH's client is not installed."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

from desk.cli import interactive, render, terminal
from desk.ssh.endpoint import Endpoint

_READ_BYTES = 32 * 1024
_EXIT_LOST = 255  # as OpenSSH's client answers for a connection that ended


def run(endpoint: Endpoint, command: str) -> int:
    """Run a command, or a shell on a terminal without one, and return its exit code."""
    from desk.ssh.session import Session

    window = terminal.size() if terminal.stdin_is_terminal() else None
    with Session.connect(endpoint) as session:
        if window is not None and not command:
            stream = session.open_terminal(
                command,
                term=os.environ.get("TERM", "xterm"),
                columns=window.columns,
                rows=window.rows,
            )
            with (
                contextlib.closing(stream),
                terminal.raw(),
                interactive.window_size_followed(lambda now: stream.resize(now.columns, now.rows)),
            ):
                return _relay(stream)
        with contextlib.closing(session.open_exec(command or "exec $SHELL")) as stream:
            return _relay(stream)


def _relay(stream: Any) -> int:
    def show_errors() -> None:
        for piece in stream.iter_stderr():
            render.err_bytes(piece)

    errors = threading.Thread(target=show_errors, name="ssh-stderr", daemon=True)
    errors.start()
    threading.Thread(target=_feed, args=(stream,), name="ssh-stdin", daemon=True).start()
    while data := stream.recv(_READ_BYTES):
        render.out_bytes(data)
    errors.join()
    code: int = stream.wait_exit_code()
    return code if code >= 0 else _EXIT_LOST


def _feed(stream: Any) -> None:
    import socket

    with contextlib.suppress(OSError):  # the other end closed first
        while data := terminal.read_input():
            stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
