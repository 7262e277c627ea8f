"""Where a registry answers, by settings, names and the environment's proxies."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from deskd.domain.manifest import Descriptor, Platform, parse_platform, suitable
from deskd.registry import endpoints
from deskd.registry.authorization import parse_challenges
from deskd.registry.endpoints import Endpoints
from deskd.registry.failures import read_refusal
from deskd.registry.transport import find_proxy


def bases(found: list[endpoints.Endpoint]) -> list[tuple[str, bool]]:
    return [(endpoint.base, endpoint.verified) for endpoint in found]


def test_docker_io_is_reached_by_its_mirrors_first() -> None:
    found = Endpoints(["https://m.example/proxy", "http://127.0.0.1:5000"]).of("docker.io")
    assert bases(found) == [
        ("https://m.example/proxy/v2/", True),
        ("http://127.0.0.1:5000/v2/", False),
        ("https://registry-1.docker.io/v2/", True),
    ]
    assert [endpoint.mirror for endpoint in found] == [True, True, False]
    assert bases(Endpoints(["https://m.example"]).of("quay.example")) == [
        ("https://quay.example/v2/", True)
    ]


@pytest.mark.parametrize(
    ("host", "insecure"),
    [
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("localhost:5000", True),
        ("registry.example", False),
        ("named.example:5000", True),
        ("named.example", False),
        ("by-host.example:1234", True),
        ("10.1.2.3:5000", True),
        ("10.2.2.3", False),
        ("resolved.example", True),
    ],
)
def test_insecure_registries(monkeypatch: pytest.MonkeyPatch, host: str, insecure: bool) -> None:
    def lookup(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        address = "10.1.0.9" if name == "resolved.example" else "192.0.2.1"
        return [(0, 0, 0, "", (address, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    settings = ["named.example:5000", "by-host.example", "10.1.0.0/16"]
    found = Endpoints(insecure=settings).of(host)
    assert [endpoint.scheme for endpoint in found] == (["https", "http"] if insecure else ["https"])
    assert found[0].verified is not insecure


def test_certificates_are_those_of_the_host_and_port(tmp_path: Path) -> None:
    (tmp_path / "a" / "r.example:5000").mkdir(parents=True)
    (tmp_path / "b" / "r.example:5000").mkdir(parents=True)
    known = Endpoints(certificate_roots=[str(tmp_path / "a"), str(tmp_path / "b")])
    (endpoint,) = known.of("r.example:5000")
    assert [path.parent.name for path in endpoint.certificates] == ["a", "b"]
    (endpoint,) = known.of("r.example")
    assert endpoint.certificates == ()


@pytest.mark.parametrize(
    ("scheme", "host", "proxy"),
    [
        ("https", "r.example", "http://ann:pw@proxy.example:3128"),
        ("http", "r.example", "http://plain.example:8080"),
        ("https", "127.0.0.1", ""),
        ("https", "localhost", ""),
        ("https", "10.1.2.3", ""),
        ("https", "10.2.2.3", "http://ann:pw@proxy.example:3128"),
        ("https", "inside.example", ""),
        ("https", "deep.inside.example", ""),
        ("https", "outside.example", "http://ann:pw@proxy.example:3128"),
    ],
)
def test_proxies(monkeypatch: pytest.MonkeyPatch, scheme: str, host: str, proxy: str) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:pw@proxy.example:3128")
    monkeypatch.setenv("http_proxy", "plain.example:8080")
    monkeypatch.setenv("NO_PROXY", "10.1.0.0/16, inside.example")
    assert find_proxy(scheme, host, f"{host}:5000") == proxy


def test_challenges() -> None:
    header = 'Bearer realm="https://a.example/t?x=1,2",service="s\\"q",scope="repository:x:pull"'
    assert parse_challenges([header, "Basic realm=plain"]) == {
        "bearer": {
            "realm": "https://a.example/t?x=1,2",
            "service": 's"q',
            "scope": "repository:x:pull",
        },
        "basic": {"realm": "plain"},
    }


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}',
         "manifest unknown: manifest unknown"),
        (403, b"", "denied: requested access to the resource is denied"),
        (401, b"<html>", "unauthorized: authentication required"),
        (500, b'{"errors":[]}', "GET u: received unexpected HTTP status: 500"),
        (400, b'{"message":"a\\nb"}', "GET u: received unexpected HTTP status: 400: a b"),
        (503, b"\xff\xfe" * 10, "GET u: received unexpected HTTP status: 503"),
    ],
)  # fmt: skip
def test_refusals_in_words(status: int, body: bytes, text: str) -> None:
    assert str(read_refusal("GET", "u", status, body)) == text


def _entry(name: str) -> Descriptor:
    if not name:
        return Descriptor(name)
    system, architecture, variant = [*name.split("/"), ""][:3]
    return Descriptor(name, platform=Platform(architecture, system, variant))


@pytest.mark.parametrize(
    ("wanted", "offered", "best"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/amd64", ["linux/amd64/v3"], None),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v3"], "linux/amd64/v3"),
        ("linux/amd64", ["", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", [""], ""),
        ("linux/arm64", ["linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64/v8", ["linux/arm64"], "linux/arm64"),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], "linux/arm/v6"),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/arm", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
    ],
)
def test_the_best_platform(wanted: str, offered: list[str], best: str | None) -> None:
    found = suitable([_entry(name) for name in offered], parse_platform(wanted))
    assert (found[0].digest if found else None) == best


@pytest.mark.parametrize(
    ("text", "least_s", "most_s"),
    [
        ("120", 120, 120),
        ("", 0, 0),
        ("soon", 0, 0),
        ("-5", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)
def test_when_to_try_again(text: str, least_s: float, most_s: float) -> None:
    error = read_refusal("GET", "https://a/v2/", 429, b"", text)
    assert least_s <= error.retry_after_s <= most_s


def test_a_date_says_when_to_try_again() -> None:
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    error = read_refusal("GET", "https://a/v2/", 429, b"", in_an_hour)
    assert 3000 <= error.retry_after_s <= 3600
