"""A published UDP port that the engine passes on itself (see ``relays``)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any

from deskd.network.firewall import Publication

IDLE_S = 90.0
"""How long a client's way is kept after its last datagram, as docker-proxy does."""

_SWEEP_S = 30.0
_FLOWS = 512
"""Of one port; a further client takes the place of the one that was quiet for longest."""
_DATAGRAM_BYTES = 65535
_ANCILLARY_BYTES = socket.CMSG_SPACE(20)
_BATCH = 64
"""Datagrams that one socket gets through before others have their turn."""

_Ancillary = list[tuple[int, int, bytes]]


class _Flow:
    """One client's way to the container: a socket of its own, so that the container tells clients
    apart, and the address of the machine that the client asked."""

    def __init__(self, to_container: socket.socket, client: Any, asked: _Ancillary) -> None:
        self.to_container = to_container
        self.client = client
        self.asked = asked
        self.used_at = time.monotonic()


class DatagramRelay:
    """Passes datagrams on in both directions. Use from one event loop."""

    def __init__(self, publication: Publication, server: socket.socket) -> None:
        """``server`` holds the port and stays the caller's: not to be closed before ``close``."""
        self._publication = publication
        self._server = server
        self._flows: dict[object, _Flow] = {}  # the one that was quiet for longest comes first
        self._loop = asyncio.get_running_loop()
        server.setblocking(False)
        if server.family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        self._loop.add_reader(server.fileno(), self._take_requests)
        self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)

    def close(self) -> None:
        """End the port and its flows."""
        self._sweeping.cancel()
        self._loop.remove_reader(self._server.fileno())
        for key in list(self._flows):
            self._end(key)

    def _take_requests(self) -> None:
        for _ in range(_BATCH):
            try:
                data, ancillary, _, client = self._server.recvmsg(_DATAGRAM_BYTES, _ANCILLARY_BYTES)
            except OSError:  # nothing more is there, or an earlier answer found nobody
                return
            asked = [item for item in ancillary if item[1] == socket.IPV6_PKTINFO]
            flow = self._flow((client, *asked), client, asked)
            if flow is not None:
                with contextlib.suppress(OSError):  # lost, as datagrams may be
                    flow.to_container.send(data)

    def _flow(self, key: object, client: Any, asked: _Ancillary) -> _Flow | None:
        flow = self._flows.pop(key, None)
        if flow is None:
            if len(self._flows) >= _FLOWS:
                self._end(next(iter(self._flows)))
            address = self._publication.container_address
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            try:
                way = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            except OSError:
                return None
            try:
                way.setblocking(False)
                way.connect((str(address), self._publication.container_port))
            except OSError:
                way.close()
                return None
            flow = _Flow(way, client, asked)
            self._loop.add_reader(way.fileno(), self._take_answers, flow)
        self._flows[key] = flow
        flow.used_at = time.monotonic()
        return flow

    def _take_answers(self, flow: _Flow) -> None:
        for _ in range(_BATCH):
            try:
                data = flow.to_container.recv(_DATAGRAM_BYTES)
            except OSError:  # nothing more is there, or nobody listens in the container
                return
            flow.used_at = time.monotonic()
            with contextlib.suppress(OSError):
                self._server.sendmsg([data], flow.asked, 0, flow.client)

    def _sweep(self) -> None:
        earliest = time.monotonic() - IDLE_S
        for key in [key for key, flow in self._flows.items() if flow.used_at < earliest]:
            self._end(key)
        self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)

    def _end(self, key: object) -> None:
        flow = self._flows.pop(key)
        self._loop.remove_reader(flow.to_container.fileno())
        flow.to_container.close()
