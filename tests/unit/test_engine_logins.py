"""Logins in Docker's config.json and with its credential helpers."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest
from tests.credential_helper import CredentialHelper

from desk.engine.logins import (
    HUB_KEY,
    Login,
    LoginError,
    Logins,
    encode_header,
    server_key,
    server_of,
)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CredentialHelper:
    """A credential helper ``toy`` on the PATH."""
    helper = CredentialHelper(tmp_path, "toy")
    monkeypatch.setenv("PATH", str(helper.directory), prepend=":")
    return helper


def config(tmp_path: Path, **document: object) -> Logins:
    (tmp_path / "config.json").write_text(json.dumps(document))
    return Logins(tmp_path)


@pytest.mark.parametrize(
    ("image", "server"),
    [
        ("busybox", HUB_KEY),
        ("team/busybox:1", HUB_KEY),
        ("docker.io/library/busybox", HUB_KEY),
        ("localhost/x", "localhost"),
        ("registry.example:5000/a/b@sha256:1", "registry.example:5000"),
        ("10.0.0.1:80/x", "10.0.0.1:80"),
    ],
)
def test_each_image_has_the_login_of_its_registry(image: str, server: str) -> None:
    assert server_of(image) == server


def test_servers_as_people_write_them() -> None:
    for text in ("", "docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"):
        assert server_key(text) == HUB_KEY
    assert server_key("https://r.example:5000/v2/") == "r.example:5000"


def test_a_login_is_kept_for_this_user_alone(tmp_path: Path) -> None:
    logins = Logins(tmp_path / "new")
    assert not logins.find("r")
    assert logins.keep("r", Login("ann", "s3:cret"))
    assert logins.find("r") == Login("ann", "s3:cret")
    assert stat.S_IMODE(logins.path.stat().st_mode) == 0o600
    written = json.loads(logins.path.read_text())
    assert written == {"auths": {"r": {"auth": base64.b64encode(b"ann:s3:cret").decode()}}}
    logins.keep("t", Login("ann", "", "token"))
    assert logins.find("t") == Login("ann", "", "token")
    assert logins.forget("r")
    assert not logins.forget("r")
    assert not logins.find("r")


def test_what_else_is_in_the_file_stays(tmp_path: Path) -> None:
    logins = config(tmp_path, psFormat="table", auths={"https://r.example/v1/": {"auth": "YTpi"}})
    assert logins.find("r.example") == Login("a", "b")
    logins.keep("other", Login("c", "d"))
    assert json.loads(logins.path.read_text())["psFormat"] == "table"
    assert logins.forget("r.example")
    assert list(json.loads(logins.path.read_text())["auths"]) == ["other"]


def test_helpers(tmp_path: Path, helper: CredentialHelper) -> None:
    logins = config(tmp_path, credsStore="toy", credHelpers={"own.example": "missing"})
    assert not logins.find("r")
    assert not logins.keep("r", Login("ann", "s3cret"))
    assert helper.kept == {"r": ["ann", "s3cret"]}
    assert json.loads(logins.path.read_text())["auths"] == {"r": {}}
    assert logins.find("r") == Login("ann", "s3cret")
    logins.keep("t", Login("ann", "", "token"))
    assert logins.find("t") == Login("", "", "token")
    assert logins.forget("r")
    assert not logins.find("r")
    assert not logins.find("own.example")
    with pytest.raises(LoginError, match="docker-credential-missing is not installed"):
        logins.find("own.example", strict=True)


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"r": {"auth": "%%"}}}'])
def test_a_damaged_file_stops_only_who_changes_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    logins = Logins(tmp_path)
    assert not logins.find("r")
    with pytest.raises(LoginError):
        logins.find("r", strict=True)


def test_the_header(tmp_path: Path) -> None:
    assert encode_header(Login(), "r") == {}
    value = encode_header(Login("ann", "ü?>"), "r")["X-Registry-Auth"]
    assert json.loads(base64.urlsafe_b64decode(value)) == {
        "username": "ann",
        "password": "ü?>",
        "serveraddress": "r",
    }
