"""A small HTTP proxy: whatever host is asked for, one target answers. Counts what passed."""

from __future__ import annotations

import contextlib
import select
import socket
from urllib.parse import urlsplit

from tests.proxy_listener import ProxyListener


class HttpProxy(ProxyListener):
    """Serves ``CONNECT`` and absolute request targets; leads all of them to ``target``."""

    def __init__(self, target: str) -> None:
        super().__init__()
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self.hosts: list[str] = []
        self.credentials: set[str] = set()

    def accepted(self, client: socket.socket) -> None:
        self.start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(60)
        with (
            contextlib.suppress(OSError),  # whoever leaves in the middle
            client,
            socket.create_connection(self._target) as server,
        ):
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(65536)
                if not data:
                    return
                head += data
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            for line in head.decode("latin-1").split("\r\n"):
                if line.lower().startswith("proxy-authorization:"):
                    self.credentials.add(line.partition(":")[2].strip())
            if method == "CONNECT":
                self.hosts.append(target)
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                parts = urlsplit(target)
                self.hosts.append(parts.netloc)
                path = f"{parts.path}?{parts.query}" if parts.query else parts.path
                server.sendall(head.replace(target.encode(), path.encode(), 1))
            self._relay(client, server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Carry both ways; a further request on this connection is rewritten as the first was."""
        while not self.closing.is_set():
            ready, _, _ = select.select([client, server], [], [], 0.1)
            for source, other in ((client, server), (server, client)):
                if source not in ready:
                    continue
                try:
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is client and b" http://" in data.split(b"\r\n", 1)[0]:
                        target = data.split(b" ", 2)[1].decode()
                        path = "/" + target.split("/", 3)[3]
                        self.hosts.append(urlsplit(target).netloc)
                        data = data.replace(target.encode(), path.encode(), 1)
                    other.sendall(data)
                except OSError:
                    return
