"""testcontainers-python against a real engine, and what its reaper asks of an engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from docker.errors import NotFound
from testcontainers.compose import DockerCompose
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import HealthcheckWaitStrategy, LogMessageWaitStrategy
from tests.clients.compose_project import PROJECTS, Compose
from tests.engine_process import EngineProcess, until

pytestmark = [
    pytest.mark.root,
    # Its clients are closed when they are collected, and not before.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def pointed(engine: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> EngineProcess:
    """The library finds the engine by the environment; its reaper's image is in no package."""
    for name, value in engine.environment.items():
        if "DOCKER" in name:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    return engine


def page_of(container: DockerContainer, address: str) -> bytes:
    """Fetch a page from inside of a container; empty while there is none."""
    found = container.exec(f"wget -q -O - {address}")
    output: bytes = found.output
    return output if found.exit_code == 0 else b""


def test_a_container_with_ports_files_and_commands(pointed: EngineProcess, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("from the test\n")
    container = (
        DockerContainer("busybox")
        .with_command("sh -c 'echo ready; exec httpd -f -p 80 -h /page'")
        .with_env("COLOUR", "blue")
        .with_exposed_ports(80)
        .with_volume_mapping(str(tmp_path / "page"), "/page", "ro")
        .waiting_for(LogMessageWaitStrategy("ready"))
    )
    with container:
        assert int(container.get_exposed_port(80)) > 0
        assert container.exec(["sh", "-c", "echo $COLOUR; exit 2"]) == (2, b"blue\n")
        fetched = until(lambda: page_of(container, "http://127.0.0.1/index.html"))
        assert fetched == b"from the test\n"
        assert container.get_logs() == (b"ready\n", b"")
        identifier = container.get_wrapped_container().id
    with pytest.raises(NotFound):
        container.get_docker_client().client.containers.get(identifier)


def test_containers_of_one_network(pointed: EngineProcess) -> None:
    with Network() as network:
        server = (
            DockerContainer("busybox")
            .with_command("httpd -f -p 80 -h /etc")
            .with_network(network)
            .with_network_aliases("server")
        )
        client = DockerContainer("busybox").with_command("sleep 600").with_network(network)
        with server, client:
            fetched = until(lambda: page_of(client, "http://server/passwd"))
            assert b"root:x:0:0" in fetched


def test_a_compose_project(pointed: EngineProcess, tmp_path: Path) -> None:
    Compose("plugin", pointed, "shop", tmp_path)  # copies the project, offers the plugin
    assert (PROJECTS / "shop" / "compose.yaml").exists()
    with DockerCompose(tmp_path / "shop", services=["db"], wait=True) as compose:
        assert compose.get_container("db").State == "running"
        output, _, code = compose.exec_in_container(["cat", "/tmp/ready"], "db")
        assert (output, code) == ("", 0)
    assert pointed.api.get("/containers/json", all=True) == []


def test_waiting_for_a_health_check(pointed: EngineProcess) -> None:
    container = DockerContainer(
        "busybox",
        healthcheck={"test": ["CMD", "test", "-e", "/tmp/up"], "interval": 200_000_000},
    ).with_command("sh -c 'sleep 0.3; touch /tmp/up; exec sleep 600'")
    with container.waiting_for(HealthcheckWaitStrategy()):
        assert container.get_wrapped_container().health == "healthy"


REAPER = """
import http.client, json, socket, sys, urllib.parse
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/run/docker.sock")
def call(method, path):
    connection = Connection("docker")
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.read()
filters = urllib.parse.quote(json.dumps({"label": [sys.argv[1]]}))
found = json.loads(call("GET", "/v1.32/containers/json?all=1&filters=" + filters)[1])
for item in found:
    print(call("DELETE", "/v1.32/containers/" + item["Id"] + "?force=1&v=1")[0])
for kind in "networks", "volumes", "images":
    method = "POST"
    print(kind, call(method, "/v1.32/" + kind + "/prune?filters=" + filters)[0])
"""


def test_a_reaper_cleans_up_through_the_mounted_socket(pointed: EngineProcess) -> None:
    api = pointed.api
    session = "org.testcontainers.sessionId=abc"
    doomed = api.run("sleep", "600", Labels={"org.testcontainers.sessionId": "abc"})
    spared = api.run("sleep", "600", Labels={"org.testcontainers.sessionId": "xyz"})
    api.post(
        "/networks/create", {"Name": "reaped", "Labels": {"org.testcontainers.sessionId": "abc"}}
    )
    api.post("/volumes/create", {"Name": "kept"})
    # The reaper runs the host's Python in a container that has the engine's socket.
    output = api.output(
        *("/usr/bin/python3", "-c", REAPER, session),
        HostConfig={
            "Binds": [
                f"{pointed.socket}:/var/run/docker.sock",
                *("/usr:/usr:ro", "/usr/lib:/lib:ro", "/usr/lib64:/lib64:ro"),
            ]
        },
    )
    assert output.split("\n")[:4] == ["204", "networks 200", "volumes 200", "images 200"], output
    assert [item["Id"] for item in api.get("/containers/json")] == [spared]
    assert api.error("GET", f"/containers/{doomed}/json").status == 404
    assert api.get("/networks", filters={"name": ["reaped"]}) == []
    assert api.get("/volumes/kept")["Name"] == "kept"
