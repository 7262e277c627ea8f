"""What the tests of Docker's clients share: an engine, and docker-py's client of it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from tests.clients.docker_commands import docker_clients
from tests.engine_fixtures import engine, shared_engine
from tests.engine_process import EngineProcess

__all__ = ["client", "engine", "shared_engine"]


@pytest.fixture
def every_docker_cli(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker CLI, put in front on PATH; the test runs once with each version at hand."""
    directory = docker_clients()[request.param]
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    return directory


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "every_docker_cli" in metafunc.fixturenames:
        metafunc.parametrize("every_docker_cli", list(docker_clients()), indirect=True)


@pytest.fixture
def client(engine: EngineProcess) -> Iterator[docker.DockerClient]:
    """docker-py's client, which negotiates its version."""
    found = docker.DockerClient(base_url=f"unix://{engine.socket}", version="auto", timeout=60)
    yield found
    found.close()
    gc.collect()  # docker-py leaves the sockets of streams to it
