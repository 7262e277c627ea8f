"""Answers that wait for the disk share its flushes, and none waits for too early a one."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from deskd.api.routes import ROUTES
from deskd.services.durability import Durability
from deskd.store.database import Database


class SlowDisk(Database):
    """A database whose flushes wait until they may go on."""

    flushes = 0
    gate: threading.Event

    def flush(self) -> None:
        self.flushes += 1
        assert self.gate.wait(30)


@pytest.fixture
def disk(tmp_path: Path) -> SlowDisk:
    found = SlowDisk.open(str(tmp_path / "engine.db"))
    assert isinstance(found, SlowDisk)
    found.gate = threading.Event()
    return found


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0.005)


def test_who_waits_together_shares_a_flush_and_who_comes_later_gets_another(
    disk: SlowDisk,
) -> None:
    async def scenario() -> None:
        durability = Durability(disk)
        early = [asyncio.create_task(durability.settle()) for _ in range(5)]
        await turns()
        assert disk.flushes == 1
        late = [asyncio.create_task(durability.settle()) for _ in range(5)]
        await turns()
        assert disk.flushes == 1  # the one that runs may have missed what they committed
        assert not any(task.done() for task in (*early, *late))
        disk.gate.set()
        await asyncio.gather(*early, *late)
        assert disk.flushes == 2
        await durability.settle()
        assert disk.flushes == 3

    asyncio.run(scenario())
    disk.close()


def test_a_client_that_goes_away_takes_nobodys_flush_along(disk: SlowDisk) -> None:
    async def scenario() -> None:
        durability = Durability(disk)
        gone, stays = (asyncio.create_task(durability.settle()) for _ in range(2))
        await turns()
        gone.cancel()
        await turns()
        disk.gate.set()
        await stays
        assert disk.flushes == 1

    asyncio.run(scenario())
    disk.close()


def test_all_that_makes_or_removes_something_waits_for_the_disk() -> None:
    durable = {route.handler for route in ROUTES if route.durable}
    for kind in ("containers", "volumes", "networks"):
        assert {f"{kind}:create", f"{kind}:remove", f"{kind}:prune"} <= durable
    assert {"images:tag", "images:commit", "images:remove", "images:prune"} <= durable
    assert not durable & {"containers:start", "containers:stop", "containers:wait", "exec:create"}
