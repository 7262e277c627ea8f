"""A registry that takes blobs only as a whole: a real one, behind a proxy that refuses PATCH."""

from __future__ import annotations

import threading
from typing import NamedTuple

from tests.engine.registry_front import FrontHandler
from tests.http_service import HttpService


class Upload(NamedTuple):
    """A request with content: ``length`` is its Content-Length, "" in a chunked one."""

    method: str
    path: str
    length: str


class _Handler(FrontHandler):
    owner: WholeUploads

    def serve(self) -> None:
        body = self.body()
        with self.owner.lock:
            if self.command in ("PATCH", "PUT"):
                length = self.headers.get("Content-Length", "")
                self.owner.uploads.append(Upload(self.command, self.path, length))
            busy = self.command == "PUT" and "/blobs/" in self.path and self.owner.busy > 0
            self.owner.busy -= busy
        if self.command == "PATCH":
            self.answer(self.owner.status, {}, b"")
        elif busy:
            self.answer(503, {}, b"")
        else:
            self.pass_on(body)


class WholeUploads(HttpService):
    """Refuses each PATCH with ``status``, and the first ``busy`` blobs with 503."""

    def __init__(self, target: str, status: int, *, busy: int = 0) -> None:
        self.target = target
        self.status = status
        self.busy = busy
        self.lock = threading.Lock()
        self.uploads: list[Upload] = []
        super().__init__(_Handler, owner=self)
