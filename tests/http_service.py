"""HTTP servers of the tests' own: a handler that keeps quiet, and a server in a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class QuietHandler(BaseHTTPRequestHandler):
    """Answers whole bodies over connections that stay."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send an answer; ``headers`` may say another length than the body has."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever leaves in the middle
            self.wfile.write(body)


class HttpService:
    """Serves at ``address`` while it is entered; ``attributes`` are the handler class's own."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], **attributes: Any) -> None:
        own = type("Handler", (handler,), attributes)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), own)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
