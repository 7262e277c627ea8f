"""A process that answers as an engine without containers on a Unix socket.

    python tests/fakes/engine_server.py SOCKET

For tests of what surrounds an engine; the tests of engines use ``deskd``.
"""

from __future__ import annotations

import json
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

MIB = 1 << 20


def container(
    name: str, held: int, peak: int, *, started: int, finished: int = 0, limit: int = 0
) -> dict[str, Any]:
    """Return an entry of ``GET /desk/memory``; sizes are MiB, times seconds of this hour."""
    now = time.time_ns()
    return {
        "Id": name[:1] * 64,
        "Name": name,
        "Image": "box",
        "Held": held * MIB,
        "Usage": held * MIB,
        "Peak": peak * MIB,
        "PeakUsage": 2 * peak * MIB,
        "Limit": limit * MIB,
        "ObservedSeconds": 7200,
        "Runs": 1,
        "StartedNano": now + (started - 3600) * 10**9,
        "FinishedNano": now + (finished - 3600) * 10**9 if finished else 0,
    }


MEMORY = {
    "Total": 1980 * MIB,
    "Used": 900 * MIB,
    "Cache": 300 * MIB,
    "Free": 780 * MIB,
    "Available": 1000 * MIB,
    "PressurePercent": 0.5,
    "Containers": [
        container("big", 600, 900, limit=1024, started=100),
        container("small", 100, 120, started=100),
        container("idle", 0, 0, started=100),
    ],
    "Ended": [
        container("past", 0, 400, started=10, finished=90),
        container("", 0, 300, started=10, finished=50),
    ],
    "History": [
        {"Time": 60, "Total": 1980 * MIB, "Used": 500 * MIB, "Cache": 100 * MIB},
        {"Time": 70, "Total": 1980 * MIB, "Used": 900 * MIB, "Cache": 300 * MIB},
        {"Time": 120, "Total": 1980 * MIB, "Used": 800 * MIB, "Cache": 300 * MIB},
    ],
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(b"", "text/plain")

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            body = json.dumps({"Version": "fake", "ApiVersion": "1.47", "MinAPIVersion": "1.24"})
            self._answer(body.encode(), "application/json")
        elif "/containers/json" in self.path:
            self._answer(b"[]\n", "application/json")
        elif self.path.endswith("/desk/memory"):
            self._answer(json.dumps(MEMORY).encode(), "application/json")
        else:
            self._answer(b"OK", "text/plain")

    def do_POST(self) -> None:
        self._answer(json.dumps({"Pending": 0, "Containers": []}).encode(), "application/json")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Api-Version", "1.47")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        return


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.unlink(missing_ok=True)
    with Server(str(path), Handler) as server:
        server.serve_forever()
