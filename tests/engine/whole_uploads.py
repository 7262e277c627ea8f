"""A registry that takes blobs only as a whole: a real one, behind a proxy that refuses PATCH."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from typing import NamedTuple

from tests.http_service import HttpService, QuietHandler


class Upload(NamedTuple):
    """A request with content: ``length`` is its Content-Length, "" in a chunked one."""

    method: str
    path: str
    length: str


class _Handler(QuietHandler):
    owner: WholeUploads

    def _pass_on(self) -> None:
        body = self._body()
        with self.owner.lock:
            if self.command in ("PATCH", "PUT"):
                length = self.headers.get("Content-Length", "")
                self.owner.uploads.append(Upload(self.command, self.path, length))
            busy = self.command == "PUT" and "/blobs/" in self.path and self.owner.busy > 0
            self.owner.busy -= busy
        if self.command == "PATCH":
            return self.answer(self.owner.status, {}, b"")
        if busy:
            return self.answer(503, {}, b"")
        connection = http.client.HTTPConnection(self.owner.target, timeout=60)
        try:
            # With the client's Host: the registry names the proxy as the place of uploads then.
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            kept = {k: v for k, v in answer.headers.items() if k.lower() != "transfer-encoding"}
            self.answer(answer.status, kept, answer.read())
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


class WholeUploads(HttpService):
    """Refuses each PATCH with ``status``, and the first ``busy`` blobs with 503."""

    def __init__(self, target: str, status: int, *, busy: int = 0) -> None:
        self.target = target
        self.status = status
        self.busy = busy
        self.lock = threading.Lock()
        self.uploads: list[Upload] = []
        super().__init__(_Handler, owner=self)
