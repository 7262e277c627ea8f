"""``desk`` and docker with a real registry: pull, push, login, logout, search, run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli_process import Cli
from tests.credential_helper import CredentialHelper
from tests.engine_process import EngineProcess
from tests.registry_process import PASSWORD, USER, running_registry

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).resolve().parents[2]
PUSH_PLATFORMS = """
import sys
from tests.kernel.image_store import entry, tar
from tests.registry_process import Pusher
Pusher(sys.argv[1]).index("several", "all", {
    name: tar(entry("file", name.encode())) for name in ("amd64", "arm64")
})
"""


@pytest.fixture
def desk(engine: EngineProcess, tmp_path: Path) -> Cli:
    home = tmp_path / "home"
    home.mkdir()
    return Cli(engine.socket, home)


@pytest.fixture(scope="module")
def registry(
    shared_engine: EngineProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A registry beside the engine, in its network namespace."""
    place = tmp_path_factory.mktemp("registry")
    with running_registry(place, before=shared_engine.inside_network()) as address:
        yield address


@pytest.fixture(scope="module")
def guarded(
    shared_engine: EngineProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A registry with passwords and TLS."""
    place = tmp_path_factory.mktemp("guarded")
    before = shared_engine.inside_network()
    with running_registry(place, before=before, passwords=True, tls=True) as address:
        yield address


@pytest.fixture(autouse=True)
def remove_images(engine: EngineProcess) -> Iterator[None]:
    yield
    for image in engine.api.get("/images/json"):
        for name in image["RepoTags"] or []:
            if name != "busybox:latest":
                engine.api.delete(f"/images/{name}", force=True)


def test_push_pull_and_run(desk: Cli, registry: str) -> None:
    name = f"{registry}/team/box"
    desk.ok("tag", "busybox", f"{name}:1")
    pushed = desk.ok("push", f"{name}:1")
    assert pushed.startswith(f"The push refers to repository [{name}]\n")
    digest = re.search(r"^1: digest: (sha256:[0-9a-f]{64}) size: \d+$", pushed, re.M)
    assert digest, pushed
    desk.ok("rmi", f"{name}:1")
    pulled = desk.ok("pull", f"{name}:1").splitlines()
    assert pulled[0] == "1: Pulling from team/box"
    assert pulled[-3:] == [
        f"Digest: {digest[1]}",
        f"Status: Downloaded newer image for {name}:1",
        f"{name}:1",
    ]
    assert desk.ok("pull", "-q", f"{name}:1") == f"{name}:1\n"
    assert digest[1] in desk.ok("images", "--digests", name)
    assert desk.ok("run", "--rm", f"{name}@{digest[1]}", "echo", "there") == "there\n"
    desk.ok("rmi", f"{name}:1")
    done = desk("run", "--rm", f"{name}:1", "echo", "fetched")
    assert (done.code, done.out) == (0, "fetched\n")
    assert f"Unable to find image '{name}:1' locally" in done.err
    assert f"Status: Downloaded newer image for {name}:1" in done.err
    desk.ok("tag", "busybox", f"{name}:2")
    desk.ok("push", "-a", name)
    desk.ok("rmi", f"{name}:1", f"{name}:2")
    lines = desk.ok("pull", "-a", name).splitlines()
    assert {"1: Pulling from team/box", "2: Pulling from team/box"} <= set(lines)
    assert lines[-1] == name


def test_docker_says_the_same(desk: Cli, registry: str) -> None:
    name = f"{registry}/same"
    desk.ok("tag", "busybox", name)
    for program in (desk, desk.docker):
        done = program("push", name)
        assert done.code == 0, done
        assert "Using default tag: latest\nThe push refers to repository" in done.out
    ours, theirs = desk("pull", name), desk.docker("pull", name)
    assert (ours.code, ours.out) == (theirs.code, theirs.out)
    for missing in (f"{registry}/nothing", f"{registry}/same:no", "127.0.0.1:1/x"):
        ours, theirs = desk("pull", missing), desk.docker("pull", missing)
        assert (ours.code, theirs.code) == (1, 1)
        message = theirs.err.removeprefix("Error response from daemon: ").strip()
        assert message in ours.err
    done = desk.docker("push", f"{registry}/none")
    assert "An image does not exist locally with the tag" in done.err
    assert desk("push", f"{registry}/none").code == 1


def test_one_login_serves_both_clients(desk: Cli, guarded: str) -> None:
    name = f"{guarded}/own:1"
    desk.ok("tag", "busybox", name)
    for program in (desk, desk.docker):
        done = program("push", name)
        assert done.code == 1
        assert "no basic auth credentials" in done.err
    done = desk("login", "-u", USER, "--password-stdin", guarded, stdin=b"wrong")
    assert done.code == 1
    assert "unauthorized" in done.err
    done = desk("login", "-u", USER, "--password-stdin", guarded, stdin=PASSWORD.encode() + b"\n")
    assert (done.code, done.out) == (0, "Login Succeeded\n")
    assert "stored unencrypted" in done.err
    assert desk.docker("push", name).code == 0
    assert desk("login", guarded).out == "Login Succeeded\n"
    desk.ok("rmi", name)
    desk.ok("pull", name)
    assert desk.ok("logout", guarded) == f"Removing login credentials for {guarded}\n"
    assert desk.ok("logout", guarded) == f"Not logged in to {guarded}\n"
    desk.ok("rmi", name)
    assert desk("pull", name).code == 1
    done = desk.docker("login", "-u", USER, "--password-stdin", guarded, stdin=PASSWORD.encode())
    assert done.code == 0, done
    desk.ok("pull", name)
    assert json.loads((desk.home / "config.json").read_text())["auths"][guarded]["auth"]


@pytest.mark.parametrize("setting", ["credsStore", "credHelpers"])
def test_credential_helpers_serve_both_clients(
    desk: Cli, guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    helper, other = (CredentialHelper(tmp_path, name) for name in ("test", "other"))
    monkeypatch.setenv("PATH", str(helper.directory), prepend=":")
    config: dict[str, Any] = {"credsStore": "test"}
    if setting == "credHelpers":  # it comes before the one for all others
        config = {"credsStore": "other", "credHelpers": {guarded: "test"}}
    (desk.home / "config.json").write_text(json.dumps(config))
    name = f"{guarded}/helped:1"
    desk.ok("tag", "busybox", name)
    for program in (desk, desk.docker):
        done = program("push", name)
        assert done.code == 1
        assert "no basic auth credentials" in done.err
    log_in = ("login", "-u", USER, "--password-stdin", guarded)
    assert desk(*log_in, stdin=b"wrong").code == 1
    assert helper.kept == {}
    for first, second in ((desk, desk.docker), (desk.docker, desk)):
        done = first(*log_in, stdin=PASSWORD.encode())
        # No warning: nothing of the password is in the file.
        assert (done.code, done.out.strip(), done.err) == (0, "Login Succeeded", "")
        assert helper.kept == {guarded: [USER, PASSWORD]}
        document = json.loads((desk.home / "config.json").read_text())
        assert document == {**config, "auths": {guarded: {}}}
        for program in (first, second):
            helper.asked()
            for command in ("push", "rmi", "pull"):
                done = program(command, name)
                assert done.code == 0, done
            assert set(helper.asked()) == {"get"}
            done = program("login", guarded)
            assert done.code == 0, done
            assert "Login Succeeded" in done.out
        assert second("logout", guarded).out == f"Removing login credentials for {guarded}\n"
        assert helper.kept == {}
        assert json.loads((desk.home / "config.json").read_text()).get("auths", {}) == {}
        assert desk.ok("logout", guarded) == f"Not logged in to {guarded}\n"
        for program in (first, second):
            assert "no basic auth credentials" in program("push", name).err
    assert other.kept == {}


def test_a_credential_helper_that_is_missing_or_fails(
    desk: Cli, guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = CredentialHelper(tmp_path, "test")
    monkeypatch.setenv("PATH", str(helper.directory), prepend=":")
    log_in = ("login", "-u", USER, "--password-stdin", guarded)
    (desk.home / "config.json").write_text(json.dumps({"credsStore": "missing"}))
    done = desk(*log_in, stdin=PASSWORD.encode())
    assert (done.code, done.out) == (1, "")
    assert "the credential helper docker-credential-missing is not installed" in done.err
    program = helper.directory / "docker-credential-test"
    program.write_text("#!/bin/sh\necho the keychain is locked; exit 1\n")
    (desk.home / "config.json").write_text(json.dumps({"credsStore": "test"}))
    for command in (log_in, ("logout", guarded)):
        done = desk(*command, stdin=PASSWORD.encode())
        assert (done.code, done.out) == (1, "")
        assert "docker-credential-test failed: the keychain is locked" in done.err


def test_login_asks_on_a_terminal(desk: Cli, guarded: str) -> None:
    done = desk("login", guarded)
    assert done.code == 1
    assert "non TTY" in done.err
    child = desk.spawn("login", guarded)
    child.expect("Username")
    child.sendline(USER)
    child.expect("Password")
    child.sendline(PASSWORD)
    child.expect("Login Succeeded")
    child.wait()
    assert child.exitstatus == 0


def test_progress_on_a_terminal_has_a_line_for_each_layer(desk: Cli, registry: str) -> None:
    name = f"{registry}/shown:1"
    # With a layer that no image of another test has.
    desk.ok("run", "--name", "shown", "busybox", "sh", "-c", "head -c 20 /dev/urandom >/own")
    desk.ok("commit", "shown", name)
    desk.ok("rm", "shown")
    desk.ok("push", name)
    desk.ok("rmi", name)
    desk.ok("undo", "--empty", "--force")  # the bin keeps layers, which are not pulled then
    child = desk.spawn("pull", name)
    child.expect("Pulling from shown")
    child.expect(r"[0-9a-f]{12}: Pulling fs layer")
    child.expect(r"\x1b\[1A\r\x1b\[2K[0-9a-f]{12}: Pull complete")
    child.expect("Status: Downloaded newer image")
    child.wait()
    assert child.exitstatus == 0
    desk.ok("rmi", name)


def test_the_tree_of_images_is_dockers(desk: Cli, engine: EngineProcess) -> None:
    for name in ("tree/one:1", "tree/one:2", "tree/two:1"):
        desk.ok("tag", "busybox", name)
    desk.ok("create", "--name", "tree-user", "tree/one:1", "true")
    made = json.loads(desk.ok("inspect", "busybox"))[0]["Id"].removeprefix("sha256:")[:12]
    try:
        ours, theirs = desk("images", "--tree"), desk.docker("images", "--tree")
        assert (ours.code, theirs.code) == (0, 0), theirs.err
        names = {"busybox:latest", "tree/one:1", "tree/one:2", "tree/two:1"}
        rows = []
        for shown in (ours.out, theirs.out):
            lines = [line.split() for line in shown.splitlines()]
            assert names <= {line[0] for line in lines if line}
            rows += [line for line in lines if made in line]  # the image, at one of its names
        # docker's marks what is in use only by what an engine with containerd's store tells.
        assert rows[0] == [*rows[1], "U"]
        assert rows[0][0] in names
        assert rows[0][-2] == "0B", "no content beside the layers"
        done = desk("images", "--tree", "-q")
        assert done.code == 1
        assert "not supported with --tree" in done.err
    finally:
        desk.ok("rm", "tree-user")


def test_pulls_by_platform_digest_and_all_tags(
    desk: Cli, registry: str, engine: EngineProcess
) -> None:
    name = f"{registry}/several"
    push = (sys.executable, "-c", PUSH_PLATFORMS, registry)
    subprocess.run(engine.inside_network(*push), check=True, cwd=REPOSITORY)
    for program in (desk, desk.docker):
        for wanted in ("arm64", "amd64"):
            done = program("pull", "-q", "--platform", f"linux/{wanted}", f"{name}:all")
            assert done.code == 0, done
            shown = desk.ok("image", "inspect", "-f", "{{.Architecture}}", f"{name}:all")
            assert shown == f"{wanted}\n"
        done = program("pull", "--platform", "linux/s390x", f"{name}:all")
        assert done.code == 1
        assert "no matching manifest for linux/s390x in the manifest list entries" in done.err
        digest = json.loads(
            desk.ok("image", "inspect", "-f", "{{json .RepoDigests}}", f"{name}:all")
        )[0]
        assert program("rmi", f"{name}:all").code == 0
        assert program("pull", "-q", digest).out == f"{digest}\n"
        assert program("rmi", digest).code == 0
        done = program("pull", "-a", name)
        assert done.code == 0, done
        listed = desk.ok("images", "--format", "{{.Tag}}", name).split()
        assert sorted(listed) == ["all", "amd64", "arm64"]
        for tag in listed:
            assert program("rmi", f"{name}:{tag}").code == 0


def test_searches_and_flags_that_exclude_each_other(desk: Cli, registry: str) -> None:
    done = desk("search", f"{registry}/x")
    assert done.code == 1
    assert "does not answer searches" in done.err
    for words in (("pull", "-a", "x:1"), ("push", "-a", "x:1"), ("push", "x@sha256:" + "1" * 64)):
        assert desk(*words).code != 0
    done = desk("login", "--password-stdin", registry, stdin=b"x")
    assert "--username" in done.err


def test_what_the_registry_says_of_an_image(
    desk: Cli, engine: EngineProcess, registry: str
) -> None:
    name = f"{registry}/described:1"
    desk.ok("tag", "busybox", name)
    desk.ok("push", name)
    found = engine.api.get(f"/distribution/{name}/json")
    assert found["Descriptor"]["mediaType"].endswith("manifest.v2+json")
    (platform,) = found["Platforms"]
    assert platform["os"] == "linux"
    error = engine.api.error("GET", f"/distribution/{registry}/described:2/json")
    assert error.status == 404
