"""Engines that the contract's tests run against: one on this machine, one in a guest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.engine_places import (
    Disk,
    EnginePlace,
    GuestPlace,
    HostPlace,
    disk_of,
    guest_place,
    host_place,
    remove_everything,
)
from tests.guest_image import guest_image

__all__ = ["guest_image"]

_GUEST_MARKS = (pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def host_engine() -> Iterator[HostPlace]:
    """An engine on this machine, for all tests of a session."""
    with host_place() as place:
        yield place


@pytest.fixture(scope="session")
def guest_engine(request: pytest.FixtureRequest) -> Iterator[GuestPlace]:
    """A virtual machine for all tests of a session."""
    with guest_place(request.getfixturevalue("guest_image")) as place:
        yield place


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("host_engine", marks=pytest.mark.root),
        pytest.param("guest_engine", marks=_GUEST_MARKS),
    ],
)
def shared_place(request: pytest.FixtureRequest) -> EnginePlace:
    """Each test of the contract runs once with either."""
    place: EnginePlace = request.getfixturevalue(request.param)
    return place


@pytest.fixture
def place(shared_place: EnginePlace) -> Iterator[EnginePlace]:
    """The shared engine; whatever the test made is removed again."""
    shared_place.revive()
    yield shared_place
    remove_everything(shared_place.api)


@pytest.fixture
def guest(guest_engine: GuestPlace) -> Iterator[GuestPlace]:
    """The guest's engine alone, for what no other machine promises."""
    guest_engine.revive()
    yield guest_engine
    remove_everything(guest_engine.api)


@pytest.fixture(scope="session")
def disk(shared_place: EnginePlace) -> Iterator[Disk]:
    """A disk of the engine's machine."""
    with disk_of(shared_place) as found:
        yield found
