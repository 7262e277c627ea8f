"""A real registry for tests (Debian's docker-registry), a client that puts anything into it, and a
proxy before it that cuts, delays and corrupts what passes.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.free_ports import free_port
from tests.proxy_listener import ProxyListener

USER, PASSWORD = "ann", "s3cret"
PASSWORDS = "ann:$2b$04$AzTvBQO/r1AAY6dGG3Y2Le02P.U/7CbbGxzaMEqEB5Esi3MdAxiRe\n"
OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"
_START_TIMEOUT_S = 60.0


def make_certificate(directory: Path, host: str = "127.0.0.1") -> tuple[Path, Path]:
    """Make a self-signed certificate for an address; return its file and its key's."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=registry", "-addext"),
            f"subjectAltName=IP:{host},DNS:localhost",
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@contextlib.contextmanager
def running_registry(
    directory: Path,
    *,
    port: int = 0,
    tls: bool = False,
    tls_address: str = "127.0.0.1",
    passwords: bool = False,
    auth: Mapping[str, Any] | None = None,
    before: Sequence[str] = (),
) -> Iterator[str]:
    """Run a registry; yield its ``host:port``. ``before`` is a command that runs it (nsenter …),
    ``tls_address`` the one that its certificate is for, ``auth`` its setting of that name."""
    program = shutil.which("docker-registry")
    assert program is not None, "the registry is missing: apt-get install docker-registry"
    port = port or free_port()
    directory.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "version": 0.1,
        "storage": {
            "filesystem": {"rootdirectory": str(directory / "data")},
            "delete": {"enabled": True},
        },
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if tls:
        certificate, key = make_certificate(directory, tls_address)
        settings["http"]["tls"] = {"certificate": str(certificate), "key": str(key)}
    if passwords:
        (directory / "passwords").write_text(PASSWORDS)
        settings["auth"] = {"htpasswd": {"realm": "here", "path": str(directory / "passwords")}}
    if auth:
        settings["auth"] = auth
    configuration = directory / "registry.yml"
    configuration.write_text(json.dumps(settings))
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*before, program, "serve", str(configuration)], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while b"listening on" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def packed(data: bytes) -> bytes:
    """Compress, the same at every time."""
    return gzip.compress(data, mtime=0)


# --- a client that puts anything there ----------------------------------------------------------


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Pusher:
    """Puts blobs and manifests into a registry as they are, right or wrong."""

    def __init__(self, address: str, *, authorization: tuple[str, str] | None = None) -> None:
        self._address = address
        self._headers: dict[str, str] = {}
        if authorization:
            pair = base64.b64encode(":".join(authorization).encode()).decode()
            self._headers["Authorization"] = f"Basic {pair}"

    def request(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            sent = {**self._headers, **{k.replace("_", "-"): v for k, v in headers.items()}}
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def blob(self, repository: str, data: bytes) -> str:
        """Upload a blob; return its digest."""
        status, headers, said = self.request("POST", f"/v2/{repository}/blobs/uploads/")
        assert status == 202, said
        parts = urlsplit(headers["Location"])
        target = f"{parts.path}?{parts.query}&digest={digest(data)}"
        status, _, said = self.request("PUT", target, data, Content_Type="application/octet-stream")
        assert status == 201, said
        return digest(data)

    def manifest(self, repository: str, reference: str, document: dict[str, Any]) -> str:
        """Store a manifest; return its digest."""
        raw = json.dumps(document).encode()
        status, _, said = self.request(
            "PUT",
            f"/v2/{repository}/manifests/{reference}",
            raw,
            Content_Type=document["mediaType"],
        )
        assert status == 201, said
        return digest(raw)

    def image(
        self,
        repository: str,
        reference: str,
        layers: Sequence[bytes],
        *,
        family: str = OCI,
        compress: Callable[[bytes], bytes] = packed,
        suffix: str = "+gzip",
        platform: dict[str, str] | None = None,
        **config: Any,
    ) -> tuple[str, str, int]:
        """Store an image of these layer tars; return the digest and the ID, and the manifest's
        size."""
        document, raw_config = self.describe(
            repository, layers, family, compress, suffix, platform, **config
        )
        raw = json.dumps(document).encode()
        return self.manifest(repository, reference, document), digest(raw_config), len(raw)

    def index(
        self, repository: str, tag: str, layers: Mapping[str, bytes]
    ) -> tuple[str, list[dict[str, Any]]]:
        """Store an index of images of one layer each, by ``architecture`` or
        ``architecture/variant``; return its digest and its entries. Each image has a tag, too: its
        platform without the stroke."""
        entries = []
        for name, layer in layers.items():
            architecture, _, variant = name.partition("/")
            platform = {"architecture": architecture, **({"variant": variant} if variant else {})}
            document, _ = self.describe(repository, [layer], platform=platform)
            entries.append(
                {
                    "mediaType": document["mediaType"],
                    "digest": self.manifest(repository, name.replace("/", ""), document),
                    "size": len(json.dumps(document)),
                    "platform": {"os": "linux", **platform},
                }
            )
        document = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.index.v1+json",
            "manifests": entries,
        }
        return self.manifest(repository, tag, document), entries

    def describe(
        self,
        repository: str,
        layers: Sequence[bytes],
        family: str = OCI,
        compress: Callable[[bytes], bytes] = packed,
        suffix: str = "+gzip",
        platform: dict[str, str] | None = None,
        **config: Any,
    ) -> tuple[dict[str, Any], bytes]:
        """Store what an image consists of; return its manifest and configuration."""
        raw_config = json.dumps(
            {
                **{"architecture": "amd64", "os": "linux", **(platform or {})},
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
                "history": [{"created_by": f"layer {n}"} for n in range(len(layers))],
            }
        ).encode()
        blobs = [compress(layer) for layer in layers]
        if family == OCI:
            types = (f"{OCI}.manifest.v1+json", f"{OCI}.config.v1+json")
            layer_type = f"{OCI}.layer.v1.tar{suffix}"
        else:
            types = (
                f"{DOCKER}.distribution.manifest.v2+json",
                f"{DOCKER}.container.image.v1+json",
            )
            layer_type = f"{DOCKER}.image.rootfs.diff.tar.gzip"
        document = {
            "schemaVersion": 2,
            "mediaType": types[0],
            "config": {
                "mediaType": types[1],
                "digest": self.blob(repository, raw_config),
                "size": len(raw_config),
            },
            "layers": [
                {
                    "mediaType": layer_type,
                    "digest": self.blob(repository, blob),
                    "size": len(blob),
                }
                for blob in blobs
            ],
        }
        return document, raw_config


# --- a proxy that misbehaves --------------------------------------------------------------------


def pass_on(_number: int, _passed: int, data: bytes) -> bytes:
    """The rule of a proxy that only counts."""
    return data


class FaultProxy(ProxyListener):
    """A TCP proxy before a registry. ``rules`` says, for each connection by number, what becomes
    of the bytes that the registry sends: a function from (bytes so far, piece) to a piece, or
    ``None`` to cut the connection."""

    def __init__(
        self, target: str, rule: Callable[[int, int, bytes], bytes | None] = pass_on
    ) -> None:
        super().__init__()
        self._target = target
        self._rule = rule
        self.connections = 0
        self.requests: list[str] = []

    def accepted(self, client: socket.socket) -> None:
        self.connections += 1
        host, _, port = self._target.partition(":")
        server = socket.create_connection((host, int(port)))
        self.start(self._serve, client, server, self.connections)

    def _serve(self, client: socket.socket, server: socket.socket, number: int) -> None:
        """Carry one connection, both ways in this thread."""
        import select

        passed = 0
        with client, server, contextlib.suppress(OSError):
            while not self.closing.is_set():
                ready, _, _ = select.select([client, server], [], [], 0.1)
                if client in ready:
                    data = client.recv(65536)
                    if not data:
                        return
                    if data.split(b" ", 1)[0] in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH"):
                        self.requests.append(data.split(b"\r\n", 1)[0].decode())
                    server.sendall(data)
                if server in ready:
                    data = server.recv(16384)
                    changed = self._rule(number, passed, data) if data else None
                    if changed is None:
                        return
                    passed += len(data)
                    client.sendall(changed)
