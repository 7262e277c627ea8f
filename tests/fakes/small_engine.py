"""An HTTP server on a Unix socket with the few answers of an engine that the agent needs.

Real HTTP, real sockets, a container list that the test sets. It counts the connections that it
has open, so that tests see what the agent leaves behind.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import socket
import socketserver
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit


class SmallEngine:
    """An engine at ``path``; ``containers`` is what it lists, ``emit`` sends an event."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.containers: list[dict[str, Any]] = []
        self.open_connections = 0
        self.silent_requests = 0
        self.answers: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self._streams: list[queue.Queue[bytes | None]] = []
        self._questions: list[queue.Queue[bytes | None]] = []
        self._folder_questions: list[queue.Queue[bytes | None]] = []
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        handler = type("Handler", (_Handler,), {"engine": self})
        self._server = _Server(str(self.path), handler)
        self._server.engine = self
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def stop(self) -> None:
        """Stop as a process does that ends: every connection is closed, the socket goes."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        self.path.unlink(missing_ok=True)
        with self._lock:
            streams = [*self._streams, *self._questions, *self._folder_questions]
            connections = list(self._connections)
        for stream in streams:
            stream.put(None)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def emit(self, kind: str = "container", action: str = "start") -> None:
        event = json.dumps({"Type": kind, "Action": action, "Actor": {"ID": "x"}}).encode()
        with self._lock:
            for stream in self._streams:
                stream.put(event + b"\n")

    def ask(self, message: dict[str, Any]) -> None:
        """Ask about ports, or tell that a question is settled; ``answers`` gets the answer.
        Waits for somebody to ask."""
        deadline = time.monotonic() + 60
        while not self._questions:
            assert time.monotonic() < deadline, "nobody follows the engine's questions"
            time.sleep(0.01)
        with self._lock:
            for stream in self._questions:
                stream.put(json.dumps(message).encode() + b"\n")

    def publish(self, name: str, *ports: dict[str, Any]) -> None:
        """Add a running container with these entries of ``Ports``, and tell of its start."""
        self.containers.append({"Id": name * 8, "Names": [f"/{name}"], "Ports": list(ports)})
        self.emit(action="start")

    def unpublish(self, name: str) -> None:
        self.containers = [item for item in self.containers if item["Names"] != [f"/{name}"]]
        self.emit(action="die")

    @property
    def watchers(self) -> int:
        with self._lock:
            return len(self._streams)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128
    engine: SmallEngine

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.engine._lock:
            self.engine.open_connections += 1
            self.engine._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.engine._lock:
            self.engine.open_connections -= 1
            self.engine._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: ClassVar[SmallEngine]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.removeprefix("/v1.47")
        if path == "/events":
            self._lines(self.engine._streams)
        elif path == "/desk/ports":
            self._lines(self.engine._questions)
        elif path == "/desk/folders":
            self._lines(self.engine._folder_questions)
        elif path == "/containers/json":
            self._json(self.engine.containers)
        elif path == "/version":
            self._json({"Version": "0.0.1", "ApiVersion": "1.47"})
        elif path == "/_ping":
            self._json("OK")
        elif path == "/silence":
            self._be_silent()
        else:
            self._json({"message": f"no such page: {path}"}, status=404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """Take an answer about ports; else become a raw stream that gives back what it gets, with
        ``END`` after the end."""
        if self.path.startswith("/desk/ports/"):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.engine.answers.put((self.path.rpartition("/")[2], body))
            self._json(None)
            return
        self.send_response(101, "UPGRADED")
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "tcp")
        self.end_headers()
        self.wfile.flush()
        while data := self.rfile.read1(1 << 16):
            self.wfile.write(data)
        self.wfile.write(b"END")
        self.close_connection = True

    def _be_silent(self) -> None:
        with self.engine._lock:
            self.engine.silent_requests += 1
        try:
            self.connection.recv(1)  # until the client goes away
        finally:
            with self.engine._lock:
                self.engine.silent_requests -= 1
            self.close_connection = True

    def _json(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Api-Version", "1.47")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _lines(self, listeners: list[queue.Queue[bytes | None]]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        stream: queue.Queue[bytes | None] = queue.Queue()
        with self.engine._lock:
            listeners.append(stream)
        try:
            while (event := stream.get()) is not None:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
                self.wfile.flush()
        finally:
            with self.engine._lock:
                listeners.remove(stream)
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""
