"""Sockets in a container's network namespace, with which the engine reaches its loopback."""

from __future__ import annotations

import socket

from deskd.errors import DeskdError
from deskd.services.ports import Runtime

_A_JOB = 16
"""So many come from one job, which costs some milliseconds."""


class InnerSockets:
    """Sockets that are not connected yet, UDP and TCP. While one is kept here the namespace
    stays, so ``close`` it with the container."""

    def __init__(self, runtime: Runtime, pid: int) -> None:
        self._runtime = runtime
        self._pid = pid
        self._ready: dict[bool, list[socket.socket]] = {False: [], True: []}
        self._closed = False

    async def take(self, *, stream: bool) -> socket.socket:
        """Return a socket; it is the caller's. Raises ``OSError`` where there is none any more."""
        if not self._ready[stream] and not self._closed:
            self._ready[stream] += await self._make(stream=stream)
        if self._closed or not self._ready[stream]:
            self.close()
            raise OSError("the container has ended")
        return self._ready[stream].pop()

    async def _make(self, *, stream: bool) -> list[socket.socket]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            arguments = {"pid": self._pid, "stream": stream, "count": _A_JOB}
            try:
                await self._runtime.run_job("client_sockets", arguments, [theirs.fileno()])
            except DeskdError as error:
                raise OSError(f"there are no sockets in the container: {error}") from error
            ours.setblocking(False)
            _, fds, _, _ = socket.recv_fds(ours, 1, _A_JOB, socket.MSG_CMSG_CLOEXEC)
        made = [socket.socket(fileno=fd) for fd in fds]
        for one in made:
            one.setblocking(False)
        return made

    def close(self) -> None:
        """Give the sockets up that nobody took; idempotent."""
        self._closed = True
        for ready in self._ready.values():
            while ready:
                ready.pop().close()
