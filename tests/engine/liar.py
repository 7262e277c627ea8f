"""An HTTP server that answers what a test says, as a registry that lies would."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = tuple[int, dict[str, str], bytes]


class Liar(BaseHTTPRequestHandler):
    """Answers what the test says; ``seen`` keeps the requests with their credentials."""

    protocol_version = "HTTP/1.1"
    answer: Callable[[str], Reply]
    seen: list[tuple[str, str]]

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        type(self).seen.append((self.path, self.headers.get("Authorization", "")))
        if self.path == "/v2/":
            status, headers, body = type(self).answer("ping") or (200, {}, b"{}")
        else:
            status, headers, body = type(self).answer(self.path)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)


class Server:
    def __init__(self, answer: Callable[[str], Reply | None]) -> None:
        self.seen: list[tuple[str, str]] = []
        handler = type("Handler", (Liar,), {"answer": staticmethod(answer), "seen": self.seen})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
