"""What clients ask first, ``/_ping`` and ``/version``, and the headers of every answer.

Imports next to nothing, because ``front`` answers both while the engine's other modules load.
"""

from __future__ import annotations

from deskd import __version__
from deskd.services.version import (
    API_VERSION,
    MIN_API_VERSION,
    version_document,
    version_text,
)

COMMON_HEADERS = (
    ("Api-Version", version_text(API_VERSION)),
    ("Docker-Experimental", "false"),
    ("Ostype", "linux"),
    ("Server", f"Desk/{__version__} (linux)"),
)
PING_HEADERS = (
    ("Builder-Version", "1"),
    ("Cache-Control", "no-cache, no-store, must-revalidate"),
    ("Pragma", "no-cache"),
    ("Swarm", "inactive"),
)
PING_BODY = b"OK"
PING_TYPE = "text/plain; charset=utf-8"


def early_answer(head: bytes) -> tuple[bytes, bool] | None:
    """Return the answer to a request and whether the connection stays open.

    ``head`` is all that has come on a connection. ``None`` means that it is anything but one whole
    plain ``/_ping`` or ``/version``: then the engine itself shall read it.
    """
    if not head.endswith(b"\r\n\r\n") or head.count(b"\r\n\r\n") > 1:
        return None
    line, *fields = head[:-4].decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):
        return None
    method, target, protocol = words
    path = _without_version(target)
    if (method, path) not in (("GET", "/_ping"), ("HEAD", "/_ping"), ("GET", "/version")):
        return None
    stays, hosts = protocol == "HTTP/1.1", 0
    for field in fields:
        name, colon, value = field.lower().partition(":")
        if not colon or not name.replace("-", "").isalnum() or name in _OTHERS_BUSINESS:
            return None
        hosts += name == "host"
        if name == "connection":
            if value.strip() not in ("close", "keep-alive"):
                return None
            stays = stays and value.strip() == "keep-alive"
    if hosts > 1 or (protocol == "HTTP/1.1" and not hosts):
        return None
    return _render(method, path, stays=stays), stays


_OTHERS_BUSINESS = frozenset({"content-length", "transfer-encoding", "expect", "upgrade"})
"""Headers that ask for more than an answer."""


def refusal() -> bytes:
    """Return the answer to a request that an ending engine has not read."""
    body = b'{"message":"the engine ended before it could answer: its log says why"}\n'
    fields = [*COMMON_HEADERS, ("Content-Type", "application/json"), ("Connection", "close")]
    return _message("503 ", [*fields, ("Content-Length", str(len(body)))], body)


def _without_version(target: str) -> str:
    """Take ``/v1.NN`` off where the engine speaks that version; else return the target as it is."""
    prefix, slash, rest = target[1:].partition("/")
    if not target.startswith("/v1.") or not slash:
        return target
    minor = prefix.removeprefix("v1.")
    spoken = {str(number) for number in range(MIN_API_VERSION[1], API_VERSION[1] + 1)}
    return slash + rest if minor in spoken else target


def _render(method: str, path: str, *, stays: bool) -> bytes:
    if path == "/_ping":
        body, fields = PING_BODY, [*COMMON_HEADERS, *PING_HEADERS, ("Content-Type", PING_TYPE)]
    else:
        import json

        document = json.dumps(version_document(), ensure_ascii=False, separators=(",", ":"))
        body = document.encode() + b"\n"
        fields = [*COMMON_HEADERS, ("Content-Type", "application/json")]
    fields.append(("Content-Length", str(len(body))))
    if not stays:
        fields.append(("Connection", "close"))
    return _message("200 OK", fields, b"" if method == "HEAD" else body)


def _message(status: str, fields: list[tuple[str, str]], body: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body
