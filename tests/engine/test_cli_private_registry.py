"""``desk registry``: a registry on the machine, from its first start to its removal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_process import Cli
from tests.engine_process import EngineProcess
from tests.registry_process import free_port

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
def desk(engine: EngineProcess, tmp_path: Path) -> Iterator[Cli]:
    home = tmp_path / "home"
    home.mkdir()
    cli = Cli(engine.socket, home)
    yield cli
    cli("registry", "rm", "-f")
    for image in engine.api.get("/images/json"):
        for name in image["RepoTags"] or []:
            if name != "busybox:latest":
                engine.api.delete(f"/images/{name}", force=True)


def begin(desk: Cli, *options: str) -> str:
    """Start the registry, which tells its progress on standard error; return its output."""
    done = desk("registry", "start", *options)
    assert done.code == 0, done
    return done.out


def refused(desk: Cli, *words: str) -> str:
    """Run a command that must fail; return what it says."""
    done = desk("registry", *words)
    assert (done.code, done.out) == (1, ""), done
    return done.err


def catalog(desk: Cli, address: str) -> list[str]:
    """Ask the registry itself, from a container in the machine's own network."""
    said = desk.ok("run", "--rm", "--network", "host", "busybox",
                   "wget", "-qO-", f"http://{address}/v2/_catalog")  # fmt: skip
    return list(json.loads(said)["repositories"])


def test_a_registry_from_start_to_removal(desk: Cli) -> None:
    port = free_port()
    address = f"localhost:{port}"
    said = refused(desk, "status")
    assert "there is no registry" in said
    assert "desk registry start" in said
    assert f"desk push {address}/busybox" in begin(desk, "--port", str(port))
    assert desk.ok("registry", "status") == f"Running  {address}\n"
    name = f"{address}/team/box:1"
    desk.ok("tag", "busybox", name)
    desk.ok("push", name)
    assert catalog(desk, address) == ["team/box"]
    digest = desk.ok("images", "--digests", "--format", "{{.Digest}}", f"{address}/team/box")
    desk.ok("rmi", name)
    desk.ok("pull", name)
    assert desk.ok("run", "--rm", name, "echo", "from here") == "from here\n"
    assert (
        desk.ok("images", "--digests", "--format", "{{.Digest}}", f"{address}/team/box") == digest
    )

    # A second start changes nothing; stop and start keep port and images.
    before = desk.ok("inspect", "-f", "{{.Id}}", "desk-registry")
    begin(desk)
    assert desk.ok("inspect", "-f", "{{.Id}}", "desk-registry") == before
    assert desk("registry", "stop").code == 0
    assert desk.ok("registry", "status") == "Stopped\n"
    begin(desk)
    assert desk.ok("registry", "status") == f"Running  {address}\n"
    assert catalog(desk, address) == ["team/box"]

    # Another port takes a new container, with the same images.
    other = free_port()
    begin(desk, "--port", str(other))
    assert catalog(desk, f"localhost:{other}") == ["team/box"]

    assert desk("registry", "rm", "-f").code == 0
    assert "there is no registry" in refused(desk, "rm", "-f")
    assert "desk-registry" not in desk.ok("ps", "-a") + desk.ok("volume", "ls") + desk.ok("images")


def test_what_no_tag_needs_is_deleted(desk: Cli) -> None:
    port = free_port()
    begin(desk, "--port", str(port))
    name = f"localhost:{port}/box:1"
    for content in ("old", "new"):
        desk.ok("run", "--name", "maker", "busybox", "sh", "-c", f"echo {content} >/mark")
        desk.ok("commit", "maker", name)
        desk.ok("rm", "maker")
        desk.ok("push", name)
    blobs = ("run", "--rm", "-v", "desk-registry:/r", "busybox", "sh", "-c",
             "find /r -path '*/blobs/sha256/*' -name data | wc -l")  # fmt: skip
    before = int(desk.ok(*blobs))
    said = desk("registry", "prune", "-f")
    assert int(desk.ok(*blobs)) == before - 3, said  # a manifest, a configuration, a layer
    desk.ok("rmi", name)
    desk.ok("pull", name)
    assert desk.ok("run", "--rm", name, "cat", "/mark") == "new\n"


def test_a_port_that_is_taken_leaves_nothing(desk: Cli, engine: EngineProcess) -> None:
    port = free_port()
    desk.ok("run", "-d", "--name", "first", "-p", f"127.0.0.1:{port}:80", "busybox", "sleep", "600")
    said = refused(desk, "start", "--port", str(port))
    assert str(port) in said
    assert "desk registry start --port" in said
    assert desk.ok("ps", "-aq", "--filter", "name=desk-registry") == ""


def test_another_container_of_that_name_is_left_alone(desk: Cli) -> None:
    desk.ok("run", "-d", "--name", "desk-registry", "busybox", "sleep", "600")
    for command in (["start"], ["status"], ["stop"], ["rm", "-f"]):
        assert "is no registry of Desk's" in refused(desk, *command)
    desk.ok("rm", "-f", "desk-registry")
