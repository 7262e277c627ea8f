"""A real engine for the tests of this folder: one per worker, emptied after each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.engine_fixtures import api, engine, own_engine, shared_engine
from tests.engine_process import EngineProcess
from tests.laptop import Host

__all__ = ["api", "engine", "host", "own_engine", "shared_engine"]


@pytest.fixture
def host(own_engine: EngineProcess) -> Iterator[Host]:
    # The engine's own bridge would be in the way of the machine's: only its namespace is used.
    own_engine.remove_everything()
    own_engine.stop()
    host = Host(own_engine, own_engine.root / "h")
    yield host
    for name in host("machine", "ls", "-q").out.split():
        done = host("machine", "rm", "-f", name)
        assert done.code == 0, done
    shutil.rmtree(host.home, ignore_errors=not host.home.exists())
    own_engine.start()  # so that its guard can count what is left
