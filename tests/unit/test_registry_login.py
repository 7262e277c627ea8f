"""Logging in to registries that ask for nothing, for a password, and for a token."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.http_service import HttpService, QuietHandler

from deskd.errors import InvalidArgument, Unauthorized, Unavailable
from deskd.registry.authorization import Credentials, parse_header
from deskd.registry.cancellation import Cancellation
from deskd.registry.endpoints import Endpoints
from deskd.registry.login import log_in

GOOD = "Basic " + base64.b64encode(b"ann:s3cret").decode()


class Registry(QuietHandler):
    """A registry and its token service; ``scheme`` is what ``/v2/`` asks for."""

    scheme = ""

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        given = self.headers.get("Authorization", "")
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if path == "/token":
            assert query["service"] == ["here"]
            self._token(given == GOOD)
        elif not self.scheme or given == (GOOD if self.scheme == "Basic" else "Bearer access"):
            self._answer(200, {})
        else:
            assert isinstance(self.server, ThreadingHTTPServer)
            port = self.server.server_port
            realm = f"http://127.0.0.1:{port}/token"
            self._answer(401, {}, f'{self.scheme} realm="{realm}",service="here"')

    def do_POST(self) -> None:  # noqa: N802 - http.server's name
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._token(parse_qs(body)["refresh_token"] == ["identity"])

    def _token(self, known: bool) -> None:
        given = {"token": "access", "refresh_token": "identity"}
        self._answer(200 if known else 401, given if known else {})

    def _answer(self, status: int, document: object, challenge: str = "") -> None:
        headers = {"WWW-Authenticate": challenge} if challenge else {}
        self.answer(status, headers, json.dumps(document).encode())


@contextmanager
def serving(scheme: str) -> Iterator[str]:
    with HttpService(Registry, scheme=scheme) as service:
        yield service.address


def attempt(address: str, password: str = "s3cret", token: str = "") -> str:
    name = "" if token else "ann"
    secret = "" if token else password
    given = Credentials(
        username=name, password=secret, server_address=address, identity_token=token
    )
    return log_in(Endpoints(), given, Cancellation())


def test_each_scheme_lets_the_right_ones_in() -> None:
    with serving("") as address:
        assert attempt(address) == ""
    with serving("Basic") as address:
        assert attempt(address) == ""
        assert attempt(f"http://{address}/v1/") == ""
    with serving("Bearer") as address:
        assert attempt(address) == "identity"
        assert attempt(address, token="identity") == "identity"


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
def test_wrong_passwords_are_refused(scheme: str) -> None:
    refused = pytest.raises(Unauthorized, match="incorrect username or password")
    with serving(scheme) as address, refused:
        attempt(address, "wrong")
    with serving("Bearer") as address, pytest.raises(Unauthorized):
        attempt(address, token="wrong")


def test_nobody_there_and_no_address() -> None:
    with serving("") as address:
        pass
    with pytest.raises(Unavailable, match=address):
        attempt(address)
    with pytest.raises(InvalidArgument, match="no address of a registry"):
        attempt("a b/c")
    with pytest.raises(InvalidArgument, match="no address of a registry"):
        attempt("http://[::1/")
    with pytest.raises(InvalidArgument, match="needs a username"):
        log_in(Endpoints(), Credentials(), Cancellation())


def test_a_scheme_that_is_not_known_is_told() -> None:
    with serving("Digest") as address, pytest.raises(Unauthorized):
        attempt(address)


def test_the_header_of_clients_is_read() -> None:
    given = {"username": "ann", "password": "ü?>", "serveraddress": "r", "identitytoken": "t"}

    def without_padding(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    for encode in (base64.urlsafe_b64encode, without_padding):
        found = parse_header(encode(json.dumps(given).encode()).decode())
        assert (found.username, found.password, found.identity_token) == ("ann", "ü?>", "t")
    basic = {"auth": base64.b64encode(b"ann:s3:cret").decode()}
    found = parse_header(base64.urlsafe_b64encode(json.dumps(basic).encode()).decode())
    assert found.basic == f"Basic {base64.b64encode(b'ann:s3:cret').decode()}"
    for nobody in ("", "e30=", "e30", "bnVsbA=="):
        assert parse_header(nobody) == Credentials()
    for bad in ("%%%", "e3", "W10="):
        with pytest.raises(InvalidArgument, match="X-Registry-Auth"):
            parse_header(bad)
