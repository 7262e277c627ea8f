"""Copying between a local connection and a channel, both ways, until both sides are done.

Two threads per connection: one waits for the local side, one for the machine. Each reads only
when it has written, so a slow reader slows its writer down by the socket's buffer on one side and
the channel's window on the other. What the local side takes at once is written by the thread that
reads the SSH connection already: an answer then costs one change of threads less.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import threading
from collections.abc import Callable

from desk.ssh.stream import ChannelStream

_READ_BYTES = 1 << 18
_DOWNLOAD_BYTES = 1 << 20
_PIECES_A_CALL = 64


def relay(
    local: socket.socket,
    remote: ChannelStream,
    *,
    first: bytes = b"",
    when_silent: Callable[[], bytes] | None = None,
) -> None:
    """Copy between ``local`` and ``remote`` until both have ended, then close both.

    ``first`` goes to the machine before what ``local`` sends. ``when_silent`` is called where the
    machine's side ended without one byte; what it returns goes to the local side. An end of data
    travels as a half-close, so that each direction may go on without the other.
    """
    local.settimeout(None)
    if local.family != getattr(socket, "AF_UNIX", None):
        with contextlib.suppress(OSError):
            local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    upload = threading.Thread(
        target=_upload, args=(local, remote, first), name="relay-up", daemon=True
    )
    upload.start()
    try:
        _download(local, remote, when_silent)
    finally:
        remote.close()
        with contextlib.suppress(OSError):
            local.shutdown(socket.SHUT_RDWR)  # wakes the other thread
        upload.join()
        local.close()


def _download(
    local: socket.socket, remote: ChannelStream, when_silent: Callable[[], bytes] | None
) -> None:
    try:
        received = False
        remote.deliver_to(local)
        while pieces := remote.receive(_DOWNLOAD_BYTES):
            received = True
            _send(local, pieces)
        if not (received or remote.delivered) and when_silent is not None:
            local.sendall(when_silent())
        local.shutdown(socket.SHUT_WR)
        # The machine may still read. Wait until it closes the channel, or the upload does.
        remote.wait_exit_code()
    except OSError:
        return  # the local side or the connection is gone: relay closes both


def _send(local: socket.socket, pieces: list[memoryview]) -> None:
    """Send pieces with as few system calls as may be."""
    if sys.platform == "win32":  # it has no sendmsg
        for piece in pieces:
            local.sendall(piece)
        return
    while pieces:
        sent = local.sendmsg(pieces[:_PIECES_A_CALL])
        while pieces and sent >= len(pieces[0]):
            sent -= len(pieces.pop(0))
        if sent:
            pieces[0] = pieces[0][sent:]


def _upload(local: socket.socket, remote: ChannelStream, first: bytes) -> None:
    try:
        if first:
            remote.sendall(first)
        buffer = bytearray(_READ_BYTES)
        view = memoryview(buffer)
        while count := local.recv_into(buffer):
            remote.sendall(view[:count])
        remote.shutdown(socket.SHUT_WR)
        if not _wait_for_hangup(local):
            return
    except OSError:
        pass  # the same end as a hang-up
    remote.close()


def _wait_for_hangup(local: socket.socket) -> bool:
    """Wait until the local side is gone for good, after it has ended its data; return whether
    that can be seen at all.

    A client that half-closed still reads; one that went away must not leave a stream open in the
    machine for ever. Linux tells the two apart (POLLHUP, poll(2)). macOS reports POLLHUP for both
    and Windows for neither; there the next write finds out.
    """
    if sys.platform != "linux":
        return False
    poll = select.poll()
    poll.register(local, 0)
    poll.poll()
    return True
