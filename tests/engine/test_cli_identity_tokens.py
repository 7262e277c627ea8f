"""Logins that are kept as identity tokens, through the command lines: a token service gives one out
for name and password, and whoever shows it later gets access tokens for it (OAuth2's refresh_token
grant)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_process import Cli
from tests.credential_helper import CredentialHelper
from tests.engine_process import API, EngineProcess
from tests.registry_process import PASSWORD, USER, running_registry
from tests.token_service import TokenService, token_service

pytestmark = pytest.mark.root


@pytest.fixture
def desk(engine: EngineProcess, tmp_path: Path) -> Iterator[Cli]:
    home = tmp_path / "home"
    home.mkdir()
    yield Cli(engine.socket, home)
    for image in engine.api.get("/images/json"):
        for name in image["RepoTags"] or []:
            if name != "busybox:latest":
                engine.api.delete(f"/images/{name}", force=True)


@pytest.fixture(scope="module")
def service(
    shared_engine: EngineProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TokenService]:
    before = shared_engine.inside_network()
    with token_service(tmp_path_factory.mktemp("tokens"), before) as running:
        yield running


@pytest.fixture(scope="module")
def registry(
    shared_engine: EngineProcess, service: TokenService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    place, before = tmp_path_factory.mktemp("registry"), shared_engine.inside_network()
    with running_registry(place, auth=service.settings, before=before) as address:
        yield address


def grants(service: TokenService) -> set[tuple[str, str, str]]:
    return {(asked["grant"], asked["user"], asked["status"]) for asked in service.asked()}


def kept(desk: Cli, registry: str) -> dict[str, str]:
    document = json.loads((desk.home / "config.json").read_text())
    found: dict[str, str] = document["auths"][registry]
    return found


LOG_IN = ("login", "-u", USER, "--password-stdin")


def test_a_login_is_kept_as_a_token_and_serves_both_clients(
    desk: Cli, registry: str, service: TokenService
) -> None:
    name = f"{registry}/own:1"
    desk.ok("tag", "busybox", name)
    for first, second in ((desk, desk.docker), (desk.docker, desk)):
        service.asked()
        done = first("push", name)
        assert done.code == 1, "nobody may read, and not write"
        assert "denied" in done.err
        assert grants(service) == {("nobody", "", "200")}
        done = first(*LOG_IN, registry, stdin=b"wrong")
        assert done.code == 1
        assert "unauthorized: incorrect username or password" in done.err
        done = first(*LOG_IN, registry, stdin=PASSWORD.encode())
        assert done.code == 0, done
        assert "Login Succeeded" in done.out
        assert grants(service) == {("basic", USER, "401"), ("basic", USER, "200")}
        entry = kept(desk, registry)
        assert base64.b64decode(entry["auth"]).decode() == f"{USER}:"
        token = entry["identitytoken"]
        assert token
        assert PASSWORD not in (desk.home / "config.json").read_text()
        for program in (first, second):
            for command in ("push", "rmi", "pull"):
                done = program(command, name)
                assert done.code == 0, done
            assert grants(service) == {("refresh_token", USER, "200")}
        # The token is a login, too (docker asks for the password again): it is shown to the
        # service and kept.
        assert desk("login", registry).out == "Login Succeeded\n"
        assert kept(desk, registry)["identitytoken"] == token
        assert grants(service) == {("refresh_token", USER, "200")}
        service.revoke_all()
        for program in (first, second):
            done = program("push", name)
            assert done.code == 1
            assert "unauthorized" in done.err
        assert desk("login", registry).code == 1
        assert grants(service) == {("refresh_token", "", "401")}
        assert second("logout", registry).code == 0
        done = second("pull", name)
        assert done.code == 0, done
        assert grants(service) == {("nobody", "", "200")}


def test_a_credential_helper_keeps_the_token(
    desk: Cli,
    registry: str,
    service: TokenService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    helper = CredentialHelper(tmp_path, "test")
    monkeypatch.setenv("PATH", str(helper.directory), prepend=":")
    (desk.home / "config.json").write_text(json.dumps({"credsStore": "test"}))
    name = f"{registry}/helped:1"
    desk.ok("tag", "busybox", name)
    for first, second in ((desk, desk.docker), (desk.docker, desk)):
        done = first(*LOG_IN, registry, stdin=PASSWORD.encode())
        assert (done.code, done.err) == (0, "")
        user, token = helper.kept[registry]
        assert user == "<token>"
        assert token not in ("", PASSWORD)
        service.asked()
        assert second("push", name).code == 0
        assert grants(service) == {("refresh_token", USER, "200")}
        assert second("logout", registry).code == 0
        assert helper.kept == {}


def test_what_the_engine_answers_and_asks_for(
    engine: EngineProcess, registry: str, service: TokenService
) -> None:
    service.asked()
    login = {"username": USER, "password": PASSWORD, "serveraddress": registry}
    answer = engine.api.post("/auth", login)
    assert answer["Status"] == "Login Succeeded"
    token = answer["IdentityToken"]
    assert service.asked()[-1]["scope"] == ""
    engine.api.post("/images/busybox/tag", repo=f"{registry}/asked", tag="1")

    def push(**given: str) -> bytes:
        header = base64.urlsafe_b64encode(json.dumps(given).encode()).decode()
        target = f"{API}/images/{registry}/asked/push?tag=1"
        return engine.api.raw("POST", target, b"", {"X-Registry-Auth": header})[2]

    try:
        # With a token that is refused nothing else is tried.
        refused = push(identitytoken="made-up", username=USER, password=PASSWORD)
        assert b"unauthorized" in refused
        assert grants(service) == {("refresh_token", "", "401")}
        assert b'"Digest"' in push(identitytoken=token)
    finally:
        engine.api.delete(f"/images/{registry}/asked:1", force=True)
    asked = service.asked()
    assert {entry["grant"] for entry in asked} == {"refresh_token"}
    # Layers may be mounted from where they are known to be, which is asked for, too.
    assert {entry["scope"].split()[0] for entry in asked} == {"repository:asked:pull,push"}
