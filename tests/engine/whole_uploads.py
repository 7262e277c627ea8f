"""A registry that takes blobs only as a whole: a real one, behind a proxy that refuses PATCH."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Upload(NamedTuple):
    """A request with content: ``length`` is its Content-Length, "" in a chunked one."""

    method: str
    path: str
    length: str


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: WholeUploads

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def _pass_on(self) -> None:
        body = self._body()
        with self.owner.lock:
            if self.command in ("PATCH", "PUT"):
                length = self.headers.get("Content-Length", "")
                self.owner.uploads.append(Upload(self.command, self.path, length))
            busy = self.command == "PUT" and "/blobs/" in self.path and self.owner.busy > 0
            self.owner.busy -= busy
        if self.command == "PATCH":
            return self._answer(self.owner.status, {}, b"")
        if busy:
            return self._answer(503, {}, b"")
        connection = http.client.HTTPConnection(self.owner.target, timeout=60)
        try:
            # With the client's Host: the registry names the proxy as the place of uploads then.
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            kept = {k: v for k, v in answer.headers.items() if k.lower() != "transfer-encoding"}
            self._answer(answer.status, kept, answer.read())
        finally:
            connection.close()

    def __getattr__(self, name: str) -> Callable[[], None]:
        """Every method is served alike; the base class looks for ``do_GET`` and the like."""
        if name.startswith("do_"):
            return self._pass_on
        raise AttributeError(name)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class WholeUploads:
    """Refuses each PATCH with ``status``, and the first ``busy`` blobs with 503."""

    def __init__(self, target: str, status: int, *, busy: int = 0) -> None:
        self.target = target
        self.status = status
        self.busy = busy
        self.lock = threading.Lock()
        self.uploads: list[Upload] = []
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> WholeUploads:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
