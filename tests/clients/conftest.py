"""What the tests of Docker's clients share: an engine, and docker-py's client of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import docker
import pytest
from tests.engine_fixtures import engine, shared_engine
from tests.engine_process import EngineProcess

__all__ = ["client", "engine", "shared_engine"]


@pytest.fixture
def client(engine: EngineProcess) -> Iterator[docker.DockerClient]:
    """docker-py's client, which negotiates its version."""
    found = docker.DockerClient(base_url=f"unix://{engine.socket}", version="auto", timeout=60)
    yield found
    found.close()
    gc.collect()  # docker-py leaves the sockets of streams to it
