"""A real engine for the tests of this folder: one per worker, emptied after each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.engine_process import Api, EngineProcess, running_engine
from tests.laptop import Host


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[EngineProcess]:
    """An engine that serves all tests of this worker."""
    with running_engine() as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: EngineProcess) -> Iterator[EngineProcess]:
    """The shared engine; whatever the test made is removed again."""
    shared_engine.revive()
    yield shared_engine
    shared_engine.remove_everything()


@pytest.fixture
def api(engine: EngineProcess) -> Api:
    """Calls to the shared engine."""
    return engine.api


@pytest.fixture
def own_engine() -> Iterator[EngineProcess]:
    """An engine that the test may kill and start again."""
    with running_engine() as engine:
        yield engine


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
