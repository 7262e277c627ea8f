"""docker-py against a real engine: waiting for health, log drivers."""

from __future__ import annotations

import time

import docker
import pytest
from docker.errors import APIError
from docker.types import Healthcheck, LogConfig
from tests.clients.docker_py_marks import DOCKER_PY

pytestmark = DOCKER_PY

MS = 1_000_000


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
