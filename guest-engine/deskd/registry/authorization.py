"""Who is asking: credentials, challenges and access tokens (distribution specification, "token
authentication"; RFC 9110, section 11).
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterable
from urllib.parse import urlencode, urlsplit

import msgspec

from deskd.domain.foreign_json import FOREIGN_JSON_ERRORS
from deskd.errors import InvalidArgument, Unauthorized
from deskd.registry.failures import Broken, RegistryError
from deskd.registry.transport import Answer, Transport, finish, read_limited, refusal

CLIENT_ID = "docker"
TOKEN_ANSWER_BYTES = 1024 * 1024
_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')


class Credentials(
    msgspec.Struct, kw_only=True, frozen=True, rename=lambda name: name.replace("_", "")
):
    """``AuthConfig``: body of ``POST /auth`` and content of ``X-Registry-Auth``."""

    username: str = ""
    password: str = ""
    server_address: str = ""
    identity_token: str = ""
    registry_token: str = ""
    auth: str = ""

    @property
    def basic(self) -> str:
        """The value of a Basic ``Authorization``, or "" without name and password."""
        name, password = self.username, self.password
        if self.auth and not name:
            try:
                name, _, password = base64.b64decode(self.auth).decode().partition(":")
            except ValueError:
                return ""
        if not name or not password:
            return ""
        return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"


def parse_header(text: str) -> Credentials:
    """Read ``X-Registry-Auth``: base64url of JSON. Raises ``InvalidArgument``.

    An empty object, an empty value and ``null`` mean nobody in particular.
    """
    if not text:
        return Credentials()
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        given = msgspec.json.decode(raw or b"{}", type=Credentials | None)
    except (ValueError, *FOREIGN_JSON_ERRORS) as error:
        raise InvalidArgument(
            "invalid X-Registry-Auth header: it must be the base64url encoding of a JSON object"
        ) from error
    return given or Credentials()


def parse_challenges(values: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the parameters of each scheme (lower case) that ``WWW-Authenticate`` offers."""
    found: dict[str, dict[str, str]] = {}
    for value in values:
        scheme, _, rest = value.strip().partition(" ")
        parameters = {
            name.lower(): quoted.replace('\\"', '"') or plain
            for name, quoted, plain in _PARAMETER.findall(rest)
        }
        found.setdefault(scheme.lower(), parameters)
    return found


class NoCredentials(Unauthorized):
    """A registry asks for a name and a password, and none were given (HTTP 500, as Docker says)."""

    http_status = 500


class Authorizer:
    """Sends requests with what a registry asks for; tokens are kept by scope.

    Credentials are given only to the endpoint that they are for, and to the token service that it
    names. ``identity_token`` is what that service gave to log in with later, mostly nothing.
    """

    def __init__(self, transport: Transport, credentials: Credentials) -> None:
        self._transport = transport
        self._credentials = credentials
        self._lock = threading.Lock()
        self._values: dict[str, str] = {}
        self.identity_token = credentials.identity_token

    def send(
        self,
        method: str,
        url: str,
        scopes: tuple[str, ...] = (),
        headers: dict[str, str] | None = None,
        body: Iterable[bytes] | bytes | None = None,
    ) -> Answer:
        """Send a request; where the registry asks for it, once more with credentials.

        A body that is no ``bytes`` can be sent only once: a 401 is an error then, and the next
        request of these scopes asks for a new token. Raises ``Unauthorized`` where nothing helps.
        """
        known = self._values.get(_key(scopes), "")
        answer = self._transport.send(method, url, _with(headers, known), body)
        if answer.status != 401:
            return answer
        if body is not None and not isinstance(body, bytes):
            self._values.pop(_key(scopes), None)
            raise refusal(method, url, answer)
        challenges = parse_challenges(answer.headers.getlist("WWW-Authenticate"))
        try:
            value = self._meet(challenges, (method, url), scopes, known)
        except BaseException:
            answer.close()
            raise
        if not value:
            raise refusal(method, url, answer)
        finish(answer)
        answer = self._transport.send(method, url, _with(headers, value), body)
        if answer.status == 401:
            challenges = parse_challenges(answer.headers.getlist("WWW-Authenticate"))
            if challenges.get("bearer", {}).get("error") == "insufficient_scope":
                answer.close()
                text = "requested access to the resource is denied"
                raise RegistryError(method, url, 401, "DENIED", text)
        return answer

    def _meet(
        self,
        challenges: dict[str, dict[str, str]],
        request: tuple[str, str],
        scopes: tuple[str, ...],
        tried: str,
    ) -> str:
        """Return the ``Authorization`` that a challenge asks for, "" where there is none left."""
        key = _key(scopes)
        if "bearer" in challenges:
            with self._lock:
                newer = self._values.get(key, "")
                if newer and newer != tried:
                    return newer  # another thread fetched it meanwhile
                value = f"Bearer {self._fetch_token(challenges['bearer'], scopes)}"
                self._values[key] = value
            return value
        if "basic" in challenges:
            value = self._credentials.basic
            if not value:
                method, url = request
                raise NoCredentials(f'{method.capitalize()} "{url}": no basic auth credentials')
            self._values[key] = value
            return "" if value == tried else value
        return ""

    def _fetch_token(self, challenge: dict[str, str], scopes: tuple[str, ...]) -> str:
        if self._credentials.registry_token:
            return self._credentials.registry_token
        realm = challenge.get("realm", "")
        self._check_realm(realm)
        wanted = list(dict.fromkeys([*scopes, *challenge.get("scope", "").split()]))
        service = challenge.get("service", "")
        if self._credentials.identity_token:
            form = {
                "service": service, "client_id": CLIENT_ID, "grant_type": "refresh_token",
                "refresh_token": self._credentials.identity_token, "scope": " ".join(wanted),
            }  # fmt: skip
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            body = urlencode({name: value for name, value in form.items() if value})
            answer = self._transport.send("POST", realm, headers, body)
        else:
            query = [("service", service)] if service else []
            query += [("scope", scope) for scope in wanted]
            basic = self._credentials.basic
            if basic:
                query += [("account", self._credentials.username), ("client_id", CLIENT_ID)]
                query += [("offline_token", "true")] if not wanted else []
            joint = "&" if "?" in realm else "?"
            target = f"{realm}{joint}{urlencode(query)}" if query else realm
            answer = self._transport.send("GET", target, _with(None, basic))
        if answer.status in (400, 401, 403):
            answer.close()
            raise Unauthorized(f'Get "{realm}": unauthorized: incorrect username or password')
        if answer.status != 200:
            raise refusal("GET", realm, answer)
        return self._read_token(read_limited(answer, TOKEN_ANSWER_BYTES, "the token"), realm)

    def _read_token(self, body: bytes, realm: str) -> str:
        try:
            given = json.loads(body)
            access = given.get("token") or given["access_token"]
            self.identity_token = str(given.get("refresh_token") or self.identity_token)
        except (ValueError, KeyError, AttributeError, RecursionError) as error:
            raise Broken(f"the token service {realm} answered without a token") from error
        if not isinstance(access, str) or not access.isascii() or not access.isprintable():
            raise Broken(f"the token service {realm} answered with an impossible token")
        return access

    def _check_realm(self, realm: str) -> None:
        parts = urlsplit(realm)
        endpoint = self._transport.endpoint
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Broken(
                f"the registry {endpoint.host} names {realm!r} as its token service, which is no "
                "address"
            )
        if parts.scheme == "http" and endpoint.verified and endpoint.scheme == "https":
            raise Broken(
                f"the registry {endpoint.host} wants credentials sent to {realm}, which nothing "
                f"protects: name it with --insecure-registry {endpoint.host} if that is meant"
            )


def _key(scopes: tuple[str, ...]) -> str:
    return " ".join(scopes)


def _with(headers: dict[str, str] | None, authorization: str) -> dict[str, str]:
    sent = dict(headers or {})
    if authorization:
        sent["Authorization"] = authorization
    return sent
