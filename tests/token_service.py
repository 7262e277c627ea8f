"""A token service as registries' clients know it ("Token Authentication Specification" and "OAuth2
Token Authentication" of the distribution project), for Debian's docker-registry in its token mode.

It is a program of its own, so that it can run in an engine's network namespace::

    python -m tests.token_service DIRECTORY PORT

``directory`` holds its key and certificate, the refresh tokens that it gave out and a line of JSON
for each question. Everybody may read; ``USER`` may also write.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from tests.free_ports import free_port
from tests.http_service import QuietHandler
from tests.registry_process import PASSWORD, USER

ISSUER, SERVICE = "desk tests", "registry.test"
LIFE_S = 300
_START_TIMEOUT_S = 60.0


class TokenService:
    """The running service, as a test sees it. ``settings`` is the registry's ``auth``."""

    def __init__(self, directory: Path, port: int) -> None:
        self._directory = directory
        self.settings = {
            "token": {
                "realm": f"http://127.0.0.1:{port}/token",
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(directory / "token-cert.pem"),
            }
        }

    def asked(self) -> list[dict[str, str]]:
        """Return what was asked since the last time: ``grant``, ``user``, ``scope``, ``status``."""
        path = self._directory / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def revoke_all(self) -> None:
        """Have the service forget every refresh token."""
        (self._directory / "refresh-tokens").write_text("")


@contextlib.contextmanager
def token_service(directory: Path, before: Sequence[str] = ()) -> Iterator[TokenService]:
    """Run a service; ``before`` is a command that runs it (nsenter …)."""
    directory.mkdir(parents=True, exist_ok=True)
    _make_key(directory)
    port = free_port()
    with (directory / "token-log").open("wb") as log:
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "tests.token_service", str(directory), str(port)],
            stdout=log,
            stderr=log,
            cwd=Path(__file__).resolve().parents[1],
        )
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not (directory / "ready").exists():
            assert process.poll() is None, (directory / "token-log").read_text()
            assert time.monotonic() < deadline, "the token service does not start"
            time.sleep(0.02)
        yield TokenService(directory, port)
    finally:
        process.terminate()
        process.wait(60)


def _make_key(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "token-cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "token-key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


class _Handler(QuietHandler):
    directory: Path

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        """The first form: a query, with Basic credentials where somebody is known."""
        query = parse_qs(urlsplit(self.path).query)
        user, password = "", ""
        if given := self.headers.get("Authorization", ""):
            user, _, password = (
                base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")
            )
        granted = not given or (user, password) == (USER, PASSWORD)
        offline = query.get("offline_token") == ["true"] and bool(user)
        self._reply("basic" if given else "nobody", user, query, granted=granted, offline=offline)

    def do_POST(self) -> None:  # noqa: N802 - http.server's name
        """The OAuth2 form: a body that says which grant."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        form = parse_qs(body)
        grant = form.get("grant_type", [""])[0]
        users = dict(
            line.split() for line in (self.directory / "refresh-tokens").read_text().splitlines()
        )
        user = users.get(form.get("refresh_token", [""])[0], "")
        known = bool(form.get("client_id")) and form.get("service") == [SERVICE]
        granted = grant == "refresh_token" and bool(user) and known
        self._reply(grant, user, form, granted=granted, offline=False)

    def _reply(
        self, grant: str, user: str, asked: dict[str, list[str]], *, granted: bool, offline: bool
    ) -> None:
        scopes = " ".join(asked.get("scope", [])).split()
        status = 200 if granted else 401
        line = {"grant": grant, "user": user, "scope": " ".join(scopes), "status": str(status)}
        with (self.directory / "asked").open("a") as file:
            print(json.dumps(line), file=file)
        answer: dict[str, Any] = {"error": "invalid_grant", "details": "who is that?"}
        if granted:
            token = self._token(user, scopes)
            answer = {"token": token, "access_token": token, "expires_in": LIFE_S}
        if granted and offline:
            answer["refresh_token"] = secrets.token_urlsafe(24)
            with (self.directory / "refresh-tokens").open("a") as file:
                print(answer["refresh_token"], user, file=file)
        self.answer(status, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _token(self, user: str, scopes: Sequence[str]) -> str:
        """Make a JSON Web Token of what may be granted of the scopes."""
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            may = {"pull", "push"} if user == USER else {"pull"}
            access.append(
                {"type": kind, "name": name, "actions": sorted(may & set(actions.split(",")))}
            )
        now = int(time.time())
        claims = {
            "iss": ISSUER, "sub": user, "aud": SERVICE, "exp": now + LIFE_S, "nbf": now - 10,
            "iat": now, "jti": secrets.token_hex(8), "access": access,
        }  # fmt: skip
        certificate = x509.load_pem_x509_certificate(
            (self.directory / "token-cert.pem").read_bytes()
        )
        chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
        header = {"typ": "JWT", "alg": "ES256", "x5c": chain}
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        key = serialization.load_pem_private_key(
            (self.directory / "token-key.pem").read_bytes(), None
        )
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _serve(directory: Path, port: int) -> None:
    (directory / "refresh-tokens").touch()
    handler = type("Handler", (_Handler,), {"directory": directory})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    (directory / "ready").touch()
    server.serve_forever()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
