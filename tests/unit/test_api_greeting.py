"""Which requests a starting engine answers at once, and that it needs little for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from deskd.api.greeting import early_answer

HEAVY = ("asyncio", "h11", "logging", "msgspec", "sqlite3", "ssl", "argparse", "json", "typing")


@pytest.mark.parametrize(
    ("request_", "stays"),
    [
        ("GET /_ping HTTP/1.1\nHost: x", True),
        ("HEAD /_ping HTTP/1.1\nHost: x\nUser-Agent: Docker-Client/28.0 (linux)", True),
        ("GET /v1.24/_ping HTTP/1.1\nhost: x\nConnection: keep-alive", True),
        ("GET /v1.47/version HTTP/1.1\nHost: x\nConnection: close", False),
        ("GET /_ping HTTP/1.0", False),
        ("GET /version HTTP/1.0\nHost: x", False),
    ],
)
def test_greetings_are_answered(request_: str, stays: bool) -> None:
    head = request_.replace("\n", "\r\n").encode() + b"\r\n\r\n"
    found = early_answer(head)
    assert found is not None
    answer, stays_open = found
    assert stays_open is stays
    status, _, rest = answer.partition(b"\r\n")
    fields, _, body = rest.partition(b"\r\n\r\n")
    assert status == b"HTTP/1.1 200 OK"
    assert (b"Connection: close" in fields) is not stays
    assert b"Api-Version: 1.47" in fields
    if b"/version" in head:
        assert json.loads(body)["ApiVersion"] == "1.47"
    else:
        assert body == (b"" if head.startswith(b"HEAD") else b"OK")


@pytest.mark.parametrize(
    "request_",
    [
        "GET /containers/json HTTP/1.1\nHost: x",
        "POST /_ping HTTP/1.1\nHost: x",
        "GET /v1.48/_ping HTTP/1.1\nHost: x",
        "GET /v1.23/version HTTP/1.1\nHost: x",
        "GET /_ping?x=1 HTTP/1.1\nHost: x",
        "GET /_ping HTTP/2.0\nHost: x",
        "GET /_ping HTTP/1.1",
        "GET /_ping HTTP/1.1\nHost: x\nHost: y",
        "GET /_ping HTTP/1.1\nHost: x\nContent-Length: 3",
        "GET /_ping HTTP/1.1\nHost: x\nTransfer-Encoding: chunked",
        "GET /_ping HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: tcp",
        "GET /_ping HTTP/1.1\nHost: x\n folded: y",
        "GET /_ping HTTP/1.1\nHost: x\nno field",
        "GET  /_ping HTTP/1.1\nHost: x",
        "\x16\x03\x01",
        "",
    ],
)
def test_everything_else_is_left_to_the_engine(request_: str) -> None:
    head = request_.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n"
    assert early_answer(head) is None


def test_a_part_of_a_request_and_two_requests_are_left_to_the_engine() -> None:
    whole = b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"
    assert early_answer(whole) is not None
    assert early_answer(whole[:-2]) is None
    assert early_answer(whole + whole) is None
    assert early_answer(whole + b"more") is None


def test_listening_and_greeting_load_nothing_heavy() -> None:
    code = "import sys; import deskd.opening, deskd.runtime.launching; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": "guest-engine"},
    ).stdout.split()
    assert "deskd.api.front" in loaded
    assert [name for name in HEAVY if name in loaded] == []
    assert [name for name in loaded if name.startswith("deskd.api.routes")] == []
