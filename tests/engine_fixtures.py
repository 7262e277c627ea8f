"""Fixtures of real engines, shared by a worker's tests or a test's own; conftests import them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine_process import Api, EngineProcess, running_engine


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
