"""Docker Compose against a real engine: a typical project's whole life."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.clients.compose_project import Compose
from tests.engine_process import EngineProcess

# docker-compose 1.29 takes seconds to start on a loaded machine, and is started often.
pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


@pytest.fixture(params=["plugin", "standalone", "1.29"])
def shop(
    request: pytest.FixtureRequest, engine: EngineProcess, tmp_path: Path
) -> Iterator[Compose]:
    """The shop, run by each Compose; taken down afterwards."""
    compose = Compose(request.param, engine, "shop", tmp_path)
    yield compose
    compose.run("down", "-v", "--remove-orphans", "-t", "0")


@pytest.fixture(params=["plugin", "1.29"])
def either(
    request: pytest.FixtureRequest, engine: EngineProcess, tmp_path: Path
) -> Iterator[Compose]:
    """The shop, run by both generations of Compose."""
    compose = Compose(request.param, engine, "shop", tmp_path)
    yield compose
    compose.run("down", "-v", "--remove-orphans", "-t", "0")


@pytest.fixture
def modern(engine: EngineProcess, tmp_path: Path) -> Iterator[Compose]:
    """The shop, run by Compose 2 only."""
    compose = Compose("plugin", engine, "shop", tmp_path)
    yield compose
    compose.run("down", "-v", "--remove-orphans", "-t", "0")


def until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Wait for something true and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"did not come true: {what}"
        time.sleep(0.05)
    return found


def page(engine: EngineProcess, address: str) -> str:
    """Fetch a published page from the engine's network namespace, once its server listens."""
    command = ("busybox", "wget", "-q", "-O", "-", f"http://{address}/index.html")

    def fetch() -> str:
        done = subprocess.run(
            engine.inside_network(*command), capture_output=True, text=True, timeout=60
        )
        return done.stdout if done.returncode == 0 else ""

    found: str = until(fetch, f"a page at {address}")
    return found


def test_the_life_of_a_project(shop: Compose, engine: EngineProcess) -> None:
    shop("up", "-d")
    # The order of depends_on: the job has run before the web server starts.
    assert shop("exec", "-T", "db", "cat", "/var/lib/db/state") == "migrated\n"
    until(lambda: "serving" in shop("logs", "web"), "the web server's log line")
    inspected = {name: _one(shop, engine, name) for name in ("db", "migrate", "web")}
    assert inspected["migrate"]["State"]["ExitCode"] == 0
    assert inspected["db"]["State"]["Health"]["Status"] == "healthy"
    assert "FROM_FILE=yes" in inspected["db"]["Config"]["Env"]
    assert set(inspected["web"]["NetworkSettings"]["Networks"]) == {"shop_front", "shop_back"}
    back = inspected["db"]["NetworkSettings"]["Networks"]["shop_back"]
    assert {"db", "database"} <= set(back["Aliases"])
    assert back["IPAddress"].startswith("10.99.0.")

    port = shop("port", "web", "80").strip()
    assert page(engine, port.replace("0.0.0.0", "127.0.0.1")) == "secret\nsite configuration\n"
    assert "httpd" in shop("top", "web")
    listed = shop("ps")
    assert "shop" in listed
    assert "db" in listed
    assert shop("exec", "-T", "web", "sh", "-c", "ulimit -n") == "100\n"
    for name in ("db", "database", "db.shop_back"):
        found = shop("exec", "-T", "web", "nslookup", "-type=a", name)
        assert f"Address: {back['IPAddress']}\n" in found, name
    assert shop.run("exec", "-T", "web", "sh", "-c", "exit 3").returncode == 3

    shop("pause", "web")
    assert _one(shop, engine, "web")["State"]["Paused"]
    shop("unpause", "web")
    before = _one(shop, engine, "web")["State"]["StartedAt"]
    shop("restart", "-t", "0", "web")
    assert _one(shop, engine, "web")["State"]["StartedAt"] != before
    shop("kill", "-s", "KILL", "db")
    until(lambda: not _one(shop, engine, "db")["State"]["Running"], "the database's end")
    shop("stop", "-t", "0")
    assert shop.containers(running_only=True) == []
    shop("start", "db")
    assert _one(shop, engine, "db")["State"]["Running"]
    assert shop("run", "--rm", "-T", "tool", "hello") == "tool: hello\n"
    assert shop("config", "--services").split() != []

    shop("down", "-v", "-t", "0")
    assert shop.containers() == []
    assert engine.api.get("/volumes", filters={"name": ["shop_data"]})["Volumes"] in (None, [])
    assert engine.api.get("/networks", filters={"name": ["shop_"]}) == []


def _one(compose: Compose, engine: EngineProcess, service: str) -> Any:
    (found,) = compose.containers(service)
    return engine.api.inspect(str(found["Id"]))


def test_a_second_up_changes_only_what_changed(either: Compose, engine: EngineProcess) -> None:
    either("up", "-d", "db", "web")
    first = {name: _one(either, engine, name)["Id"] for name in ("db", "web")}
    either("up", "-d", "db", "web")
    assert {name: _one(either, engine, name)["Id"] for name in ("db", "web")} == first
    settings = either.directory / "db.env"
    settings.write_text("FROM_FILE=changed\n")
    either("up", "-d", "-t", "0", "db", "web")
    second = {name: _one(either, engine, name) for name in ("db", "web")}
    assert second["db"]["Id"] != first["db"]
    assert "FROM_FILE=changed" in second["db"]["Config"]["Env"]
    # The volume went over to the new container.
    assert either("exec", "-T", "db", "cat", "/var/lib/db/state") == "migrated\n"


def test_scale_and_names_of_several_containers(either: Compose, engine: EngineProcess) -> None:
    either("up", "-d", "--scale", "db=3", "db")
    running = either.containers("db", running_only=True)
    assert len(running) == 3
    found = either("run", "--rm", "-T", "--entrypoint", "nslookup", "tool", "-type=a", "db")
    assert found.count("Address: 10.99.0.") == 3, found
    either("up", "-d", "--scale", "db=1", "db")
    assert len(either.containers("db", running_only=True)) == 1


def test_up_waits_until_healthy_and_prints_what_it_did(
    modern: Compose, engine: EngineProcess
) -> None:
    done = modern.run("up", "-d", "--wait", "db", "web")
    assert done.returncode == 0, done.stderr
    assert "does not run health checks" not in done.stderr
    table = modern("ps", "-a", "--format", "{{.Service}} {{.State}} {{.ExitCode}} {{.Health}}")
    assert sorted(table.splitlines()) == [
        "db running 0 healthy",
        "migrate exited 0 ",
        "web running 0 healthy",
    ]
    listed = json.loads(modern("ls", "-a", "--format", "json"))
    assert [(item["Name"], item["Status"]) for item in listed] == [
        ("shop", "exited(1), running(2)")
    ]
    assert "busybox" in modern("images")


def test_logs_follow_events_and_copies(
    modern: Compose, engine: EngineProcess, tmp_path: Path
) -> None:
    modern("up", "-d", "--wait", "db")
    until(lambda: engine.api.get("/info")["NEventsListener"] == 0, "the clients of before to go")
    following = modern.start("logs", "-f", "--no-log-prefix", "web")
    watching = modern.start("events", "--json")
    assert following.stdout is not None
    assert watching.stdout is not None
    try:
        until(lambda: engine.api.get("/info")["NEventsListener"] >= 1, "a listener for events")
        modern("up", "-d", "--wait", "web")
        actions = []
        while "health_status: healthy" not in actions:
            event = json.loads(watching.stdout.readline())
            if event["service"] == "web":
                actions.append(event["action"])
        assert actions.index("create") < actions.index("start")
        modern("cp", "site.conf", "web:/tmp/copied")
        modern("cp", "web:/tmp/copied", str(tmp_path / "back"))
        assert (tmp_path / "back").read_text() == "site configuration\n"
    finally:
        watching.terminate()
        following.terminate()
        watching.communicate(timeout=60)
        following.communicate(timeout=60)
    modern("down", "-v", "-t", "0")


def test_attached_up_prints_the_logs_and_ends_with_the_container(modern: Compose) -> None:
    done = modern.run("up", "--exit-code-from", "migrate", "--no-log-prefix", "migrate")
    assert done.returncode == 0, done.stderr
    done = modern.run("run", "--rm", "-T", "--entrypoint", "sh", "tool", "-c", "echo out; exit 5")
    assert (done.returncode, done.stdout) == (5, "out\n")
    assert modern.run("run", "--rm", "-T", "nosuch").returncode != 0


def test_deploy_configs_and_secrets(engine: EngineProcess, tmp_path: Path) -> None:
    workers = Compose("plugin", engine, "workers", tmp_path)
    try:
        workers("up", "-d")
        running = workers.containers("worker", running_only=True)
        assert len(running) == 2
        for container in running:
            host = engine.api.get(f"/containers/{container['Id']}/json")["HostConfig"]
            assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (500_000_000, 2**26, 50)
            assert host["MemoryReservation"] == 2**25
            assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
        files = {
            "/plain": "plain text\n",
            "/etc/written.conf": "for the world\n",
            "/etc/variable": "the world",
            "/run/secrets/token": "a secret\n",
            "/run/token": "a secret\n",
            "/run/secrets/variable": "the world",
        }
        for path, content in files.items():
            for index in ("1", "2"):
                assert workers("exec", "-T", "--index", index, "worker", "cat", path) == content
        workers("up", "-d")
        again = workers.containers("worker", running_only=True)
        assert {one["Id"] for one in again} == {one["Id"] for one in running}
    finally:
        workers.run("down", "-v", "-t", "0")
    assert workers.containers() == []
