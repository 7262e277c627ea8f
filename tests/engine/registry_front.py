"""What stands before a real registry and answers some of its requests in another way."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any

from tests.http_service import QuietHandler


class FrontHandler(QuietHandler):
    """``serve`` answers every method; ``owner.target`` is the registry's address."""

    owner: Any

    def serve(self) -> None:
        """Answer one request: ``pass_on`` it, or otherwise."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Callable[[], None]:
        """The base class looks for ``do_GET`` and the like."""
        if name.startswith("do_"):
            return self.serve
        raise AttributeError(name)

    def pass_on(self, body: bytes) -> None:
        """Give the request, with this body, to the registry and its answer to the client."""
        connection = http.client.HTTPConnection(self.owner.target, timeout=60)
        try:
            # With the client's Host: the registry names the front as the place of uploads then.
            sent = {k: v for k, v in self.headers.items() if k.lower() not in _OF_THE_BODY}
            connection.request(self.command, self.path, body, sent)
            answer = connection.getresponse()
            kept = {k: v for k, v in answer.headers.items() if k.lower() != "transfer-encoding"}
            self.answer(answer.status, kept, answer.read())
        finally:
            connection.close()

    def body(self, limit_bytes: int = -1) -> bytes:
        """Read the request's body; of a chunked one as many whole chunks as reach the limit."""
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
            if 0 <= limit_bytes <= len(body):
                return body
        self.rfile.readline()
        return body


_OF_THE_BODY = ("content-length", "content-range", "transfer-encoding")
