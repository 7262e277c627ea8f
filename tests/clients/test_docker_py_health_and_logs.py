"""docker-py against a real engine: waiting for health, log drivers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import docker
import pytest
from docker.errors import APIError
from docker.types import Healthcheck, LogConfig
from tests.engine_process import EngineProcess

pytestmark = pytest.mark.root

MS = 1_000_000


@pytest.fixture
def client(engine: EngineProcess) -> Iterator[docker.DockerClient]:
    found = docker.DockerClient(base_url=f"unix://{engine.socket}", version="1.47", timeout=60)
    yield found
    found.close()


def test_waiting_until_a_container_is_healthy(client: docker.DockerClient) -> None:
    container = client.containers.run(
        "busybox",
        "sleep 600",
        detach=True,
        healthcheck=Healthcheck(test=["CMD", "test", "-e", "/tmp/ready"], interval=100 * MS),
    )
    container.reload()
    assert container.health in ("starting", "unhealthy")
    container.exec_run("touch /tmp/ready")
    deadline = time.monotonic() + 60
    while container.health != "healthy":
        assert time.monotonic() < deadline
        time.sleep(0.1)
        container.reload()
    assert client.containers.list(filters={"health": "healthy"}) == [container]
    container.remove(force=True)


def test_log_drivers(client: docker.DockerClient) -> None:
    container = client.containers.run(
        "busybox", "echo hi", detach=True, log_config=LogConfig(type="local")
    )
    container.wait()
    assert container.logs() == b"hi\n"
    silent = client.containers.run(
        "busybox", "echo hi", detach=True, log_config=LogConfig(type="none")
    )
    silent.wait()
    with pytest.raises(APIError, match="does not support reading"):
        silent.logs()
