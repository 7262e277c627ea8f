"""``docker login``: asking a registry whether it knows somebody.

The steps are those of the distribution specification's token authentication: ``GET /v2/``, and
where that is refused, once more with what the answer's ``WWW-Authenticate`` asks for.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import re
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlencode, urlsplit

from deskd import __version__
from deskd.domain.container import ApiStruct
from deskd.errors import InvalidArgument, Unauthorized, Unavailable
from deskd.record import Record

TIMEOUT_S = 15.0
MAX_ANSWER_BYTES = 1024 * 1024
CLIENT_ID = "docker"
_HUB = ("", "docker.io", "index.docker.io", "registry-1.docker.io")
_HUB_HOST = "registry-1.docker.io"
_PARAMETER = re.compile(r'([a-zA-Z_]+)="([^"]*)"')


class Credentials(ApiStruct, frozen=True):
    """``AuthConfig``: body of ``POST /auth``."""

    username: str = ""
    password: str = ""
    server_address: str = ""
    identity_token: str = ""


class _Answer(Record):
    status: int
    challenge: str
    body: bytes


async def log_in(credentials: Credentials) -> str:
    """Check credentials; return the registry's identity token, mostly empty.

    Raises ``InvalidArgument``, ``Unauthorized`` (the registry says no) and ``Unavailable``.
    """
    if not credentials.identity_token and not (credentials.username and credentials.password):
        raise InvalidArgument("a login needs a username and a password")
    return await asyncio.to_thread(_log_in, credentials)


def _log_in(credentials: Credentials) -> str:
    url = _find_registry(credentials.server_address)
    answer = _request(url)
    if answer.status == 200:
        return ""  # it lets everybody in
    scheme = answer.challenge.partition(" ")[0].lower()
    parameters = dict(_PARAMETER.findall(answer.challenge))
    token = ""
    if scheme == "basic":
        answer = _request(url, {"Authorization": _basic(credentials)})
    elif scheme == "bearer" and parameters.get("realm"):
        access, token = _fetch_token(parameters, credentials)
        answer = _request(url, {"Authorization": f"Bearer {access}"})
    if answer.status == 401:
        raise _refused(url)
    if answer.status != 200:
        raise Unavailable(f"login attempt to {url} failed with status: {answer.status}")
    return token


def _find_registry(address: str) -> str:
    """Return the registry's base URL: HTTPS, and HTTP on this machine where that answers."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
    except ValueError:
        raise _no_address(address) from None
    host = parts.netloc.lower()
    if host in _HUB:
        return f"https://{_HUB_HOST}/v2/"
    if "@" in host or not re.fullmatch(r"[a-z0-9.:\[\]_-]+", host):
        raise _no_address(address)
    if not _is_loopback(parts.hostname or ""):
        return f"https://{host}/v2/"
    try:
        _request(f"https://{host}/v2/")
    except Unavailable:
        return f"http://{host}/v2/"
    return f"https://{host}/v2/"


def _no_address(text: str) -> InvalidArgument:
    return InvalidArgument(f"{text!r} is no address of a registry; write HOST or HOST:PORT")


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _fetch_token(challenge: dict[str, str], credentials: Credentials) -> tuple[str, str]:
    """Return the access token and the identity token that a token service gives."""
    wish = {"service": challenge.get("service", ""), "client_id": CLIENT_ID}
    realm = challenge["realm"]
    if credentials.identity_token:
        form = {
            **wish, "grant_type": "refresh_token", "refresh_token": credentials.identity_token,
        }  # fmt: skip
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = _request(realm, headers, urlencode(form))
    else:
        query = urlencode({**wish, "account": credentials.username, "offline_token": "true"})
        joint = "&" if "?" in realm else "?"
        answer = _request(f"{realm}{joint}{query}", {"Authorization": _basic(credentials)})
    if answer.status in (400, 401, 403):
        raise _refused(realm)
    try:
        given = json.loads(answer.body)
        access = given.get("token") or given["access_token"]
        return str(access), str(given.get("refresh_token") or credentials.identity_token)
    except (ValueError, KeyError, AttributeError) as error:
        raise Unavailable(
            f"the token service {realm} answered with status {answer.status} and no token"
        ) from error


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _refused(url: str) -> Unauthorized:
    return Unauthorized(f'Get "{url}": unauthorized: incorrect username or password')


def _request(url: str, headers: dict[str, str] | None = None, form: str | None = None) -> _Answer:
    """Send one request. Raises ``Unavailable`` where nobody answers in HTTP."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unavailable(f"the registry names {url!r}, which is no address")
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    try:
        connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_S)
        try:
            target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
            connection.request(
                "GET" if form is None else "POST",
                target,
                form,
                {"User-Agent": f"Desk/{__version__}", **(headers or {})},
            )
            answer = connection.getresponse()
            challenge = answer.getheader("WWW-Authenticate", "") or ""
            return _Answer(answer.status, challenge, answer.read(MAX_ANSWER_BYTES))
        finally:
            connection.close()
    except (OSError, HTTPException, ValueError) as error:
        raise Unavailable(f'Get "{url}": {error or type(error).__name__}') from error
