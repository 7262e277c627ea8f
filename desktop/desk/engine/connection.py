"""The client's core, on which the groups of calls build: connections, API version, errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import desk
from desk.engine.streams import AttachedStream, ByteStream, JsonStream, ProgressStream
from desk.engine.transport import Transport
from desk.engine.wire import (
    Body,
    ConnectionLost,
    Headers,
    HttpConnection,
    Response,
    exchange,
)
from desk.errors import EngineError, EngineUnreachable

API_VERSION = (1, 47)
OLDEST_API_VERSION = (1, 24)

JsonObject = dict[str, Any]
JsonObjects = list[JsonObject]
Query = Mapping[str, object]

_IDLE_CONNECTIONS = 4
_TAR = "application/x-tar"


def encode_query(query: Query | None) -> str:
    """Render parameters as Docker's clients do: ``None`` is left out, flags are 1 or 0, lists
    repeat the name, and mappings (filters) are JSON."""
    pairs: list[tuple[str, str]] = []
    for name, value in (query or {}).items():
        if value is None:
            continue
        if isinstance(value, bool):
            pairs.append((name, "1" if value else "0"))
        elif isinstance(value, Mapping):
            if value:
                pairs.append((name, json.dumps(value, separators=(",", ":"))))
        elif isinstance(value, list | tuple):
            pairs += [(name, str(item)) for item in value]
        else:
            pairs.append((name, str(value)))
    # A path in a container may have bytes that are no UTF-8.
    return urlencode(pairs, errors="surrogateescape")


def _is_away(response: Response) -> bool:
    """Whether the answer is of somebody who speaks for an engine that he cannot reach."""
    return response.status == 503 and not response.headers.get("api-version")


def segment(name: str) -> str:
    """Quote a name or ID for use as one part of a path (an image's slashes stay)."""
    return quote(name, safe="/:@")


class EngineConnection:
    """Requests to one engine, from any number of threads. Ordinary calls share a few kept-alive
    connections; a stream has its own until it ends.

    ``timeout_s`` bounds the wait for an answer to begin, and each read of it. ``revive`` is called
    once where somebody answers in the engine's place that it is away: it brings the engine back, or
    raises an error that says what to do.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        timeout_s: float = 60.0,
        connect_timeout_s: float = 10.0,
        unreachable_hint: str = "",
        revive: Callable[[], None] | None = None,
    ) -> None:
        self.transport = transport
        self._revive = revive
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._unreachable_hint = unreachable_hint
        self._idle: list[HttpConnection] = []
        self._lock = threading.Lock()
        self._version: tuple[int, int] | None = None
        self._closed = False
        self.bin_group = ""
        """Names the command whose removals go into the engine's bin together; ``1`` is a new name
        for each, and nothing lets what is removed go past the bin."""

    # --- life ------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the idle connections; streams in use are their owners'."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for http in idle:
            http.close()

    @property
    def api_version(self) -> str:
        """The version that both sides speak, asked for with ``/_ping`` where no answer told it."""
        with self._lock:
            version = self._version
        if version is None:
            response = self._introduced(lambda _version: self._ping())
            response.read()
            with self._lock:
                assert self._version is not None
                version = self._version
        return f"{version[0]}.{version[1]}"

    def _introduced(self, send: Callable[[str], Response]) -> Response:
        """Send the first request, in our own version, and learn the engine's from the answer; one
        in a version that is too new for the engine is sent again."""
        ours = f"{API_VERSION[0]}.{API_VERSION[1]}"
        response = send(ours)
        if _is_away(response) and self._revive is not None:
            response.read()
            self._revive()
            response = send(ours)
        try:
            agreed = self._agreed(response)
        except EngineError:
            response.close()
            raise
        with self._lock:
            self._version = agreed
        if response.status == 400 and agreed != API_VERSION:
            response.read()
            response = send(f"{agreed[0]}.{agreed[1]}")
        return response

    def _agreed(self, response: Response) -> tuple[int, int]:
        """Return the version to speak with who gave this answer."""
        text = response.headers.get("api-version")
        if response.status >= 500 and not text:
            raise EngineError(
                f"the engine at {self.transport.url} is not ready (HTTP {response.status})",
                status=response.status,
            )
        major, _, minor = text.partition(".")
        if not (major.isdecimal() and minor.isdecimal()):
            return API_VERSION  # an engine that does not tell takes what it is given
        offered = (int(major), int(minor))
        if offered < OLDEST_API_VERSION:
            raise EngineError(
                f"the engine at {self.transport.url} speaks API version {text} only",
                hint="Desk needs 1.24 or newer: upgrade the engine.",
            )
        return min(offered, API_VERSION)

    def _ping(self) -> Response:
        return self._exchange("HEAD", "/_ping", {}, None, self._timeout_s)

    # --- requests --------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: JsonObject | None = None,
        pieces: Body | None = None,
        content_type: str = _TAR,
        headers: Mapping[str, str] | None = None,
        versioned: bool = True,
        timeout_s: float | None = None,
    ) -> Response:
        """Send a request and return the answer with its body unread; ``EngineError`` for a
        status of 400 and above. The caller reads the body to its end or closes it."""
        parameters = encode_query(query)
        target = f"{path}?{parameters}" if parameters else path
        fields = dict(headers or {})
        content: Body | None = pieces
        if pieces is not None:
            fields.setdefault("Content-Type", content_type)
        elif body is not None:
            content = json.dumps(body).encode()
            fields["Content-Type"] = "application/json"
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        with self._lock:
            unknown = self._version is None
        if not versioned:
            response = self._exchange(method, target, fields, content, limit_s)
        elif unknown and method == "GET":  # whatever becomes of it, it changes nothing
            response = self._introduced(
                lambda version: self._exchange("GET", f"/v{version}{target}", fields, None, limit_s)
            )
        else:
            target = f"/v{self.api_version}{target}"
            response = self._exchange(method, target, fields, content, limit_s)
        if response.status >= 400:
            raise self._error(response, path)
        return response

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Send a request (options as for ``request``) and return its JSON, ``None`` without."""
        return self.call_whole(method, path, **options)[0]

    def call_whole(self, method: str, path: str, **options: Any) -> tuple[Any, Headers]:
        """Do what ``call`` does, and return the answer's headers too."""
        response = self.request(method, path, **options)
        data = response.read()
        if not data.strip():
            return None, response.headers
        try:
            return json.loads(data), response.headers
        except ValueError as error:
            raise EngineError(
                f"the engine at {self.transport.url} answered {path} with something else than JSON",
                status=response.status,
            ) from error

    def status(self, method: str, path: str, **options: Any) -> int:
        """Send a request and return the status only (304 tells that nothing changed)."""
        response = self.request(method, path, **options)
        response.read()
        return response.status

    def headers(self, method: str, path: str, **options: Any) -> Mapping[str, str]:
        """Send a request and return the headers by which the engine tells a path's stat."""
        response = self.request(method, path, **options)
        response.read()
        return ByteStream(response).headers

    def stream(self, method: str, path: str, **options: Any) -> Response:
        """Send a request whose answer may pause for as long as it likes once it has begun."""
        response = self.request(method, path, **options)
        response.set_timeout(None)
        return response

    def objects(self, method: str, path: str, **options: Any) -> JsonStream:
        return JsonStream(self.stream(method, path, **options))

    def progress(
        self, method: str, path: str, *, pieces: Iterable[bytes] | None = None, **options: Any
    ) -> ProgressStream:
        """Send a long operation's request. The answer may begin only after the whole upload."""
        if pieces is not None:
            options["timeout_s"] = float("inf")
        return ProgressStream(self.stream(method, path, pieces=pieces, **options))

    def upgrade(
        self,
        path: str,
        *,
        query: Query | None = None,
        body: JsonObject | None = None,
        multiplexed: bool | None = None,
    ) -> AttachedStream:
        """Send a request that takes its connection over (101, or 200 as of old). Without
        ``multiplexed`` the answer's content type decides."""
        response = self.request(
            "POST",
            path,
            query=query,
            body=body,
            headers={"Connection": "Upgrade", "Upgrade": "tcp"},
        )
        response.set_timeout(None)
        if multiplexed is None:
            multiplexed = "multiplexed" in response.headers.get("content-type")
        return AttachedStream(response.take_over(), multiplexed=multiplexed)

    # --- connections -----------------------------------------------------------------------

    def _exchange(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body | None,
        timeout_s: float,
    ) -> Response:
        fields = {
            "Host": "desk",
            "User-Agent": f"desk/{desk.__version__}",
            "Accept": "*/*",
            **headers,
        }
        limit_s = None if timeout_s == float("inf") else timeout_s
        changes_nothing = method in ("GET", "HEAD")
        http = self._take()
        response: Response | None = None
        if http is not None:
            http.set_timeout(limit_s)
            try:
                response = exchange(http, method, target, fields, body)
            except EngineUnreachable:
                # Closed by the engine while idle. Only what changes nothing is sent again.
                if not changes_nothing:
                    raise
        if response is None:
            http = self._connect(limit_s)
            try:
                response = exchange(http, method, target, fields, body)
            except ConnectionLost:
                if not changes_nothing:
                    raise
                # Whoever took the connection ended before it answered, as an agent that is killed.
                response = exchange(self._connect(limit_s), method, target, fields, body)
        response.on_finished = self._keep
        return response

    def _connect(self, timeout_s: float | None) -> HttpConnection:
        try:
            connection = self.transport.connect(self._connect_timeout_s)
        except EngineUnreachable as error:
            error.hint = error.hint or self._unreachable_hint
            raise
        http = HttpConnection(connection, self.transport.url)
        http.set_timeout(timeout_s)
        return http

    def _take(self) -> HttpConnection | None:
        with self._lock:
            while self._idle:
                http = self._idle.pop()
                if not http.is_stale():
                    return http
                http.close()
        return None

    def _keep(self, http: HttpConnection) -> None:
        with self._lock:
            if not http.closed and not self._closed and len(self._idle) < _IDLE_CONNECTIONS:
                self._idle.append(http)
                return
        http.close()

    def _error(self, response: Response, path: str) -> EngineError:
        response.set_timeout(self._timeout_s)
        data = response.read()
        text = data.decode("utf-8", "replace").strip()
        try:
            message = json.loads(text)
        except ValueError:
            message = None
        if isinstance(message, dict) and message.get("message"):
            text = str(message["message"])
        text = text or f"HTTP {response.status}"
        return EngineError(text, status=response.status, path=path)
