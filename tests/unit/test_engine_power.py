"""The power policy when its agent falls silent, and when the kernel refuses a limit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deskd.domain.state import ContainerRecord
from deskd.errors import InvalidArgument, Unsupported
from deskd.services.containers import power
from deskd.services.containers.power import PowerPolicy, PowerReport
from deskd.services.containers.registry import ContainerRegistry
from deskd.services.events import Events
from deskd.store import records
from deskd.store.database import Database

QUARTER = 250_000_000


class Cpu:
    """``ContainersCpu`` in memory; the tests of tests/engine have the kernel's."""

    def __init__(self) -> None:
        self.nano_cpus = 0
        self.refusal = ""

    def cap(self, nano_cpus: int) -> None:
        if self.refusal:
            raise Unsupported(self.refusal)
        self.nano_cpus = nano_cpus

    def capped(self) -> int:
        return self.nano_cpus


def policy_with(cpu: Cpu, directory: Path) -> tuple[PowerPolicy, Database]:
    database = Database.open(str(directory / "engine.db"))
    events = Events()
    table = records.containers(database, ContainerRecord, key=lambda r: r.id, name=lambda r: r.name)
    lifecycle: Any = None  # there is no container whom it could pause
    return PowerPolicy(ContainerRegistry(table, events), lifecycle, cpu, events, database), database


def test_a_silent_agent_leaves_no_limit(monkeypatch: Any, tmp_path: Path) -> None:
    async def use() -> None:
        cpu = Cpu()
        policy, database = policy_with(cpu, tmp_path)
        try:
            monkeypatch.setattr(power, "LEASE_S", 3600.0)
            await policy.start()
            await policy.tell(PowerReport(source="battery", nano_cpus=QUARTER))
            assert cpu.nano_cpus == QUARTER
            monkeypatch.setattr(power, "LEASE_S", 0.0)
            told = await policy.tell(PowerReport(source="battery", nano_cpus=QUARTER))
            async with asyncio.timeout(60):
                while cpu.nano_cpus or told["Source"] != "unknown":
                    told = await policy.state()
        finally:
            await policy.close()
            database.close()

    asyncio.run(use())


def test_what_an_earlier_engine_left_ends_without_an_agent(
    monkeypatch: Any, tmp_path: Path
) -> None:
    async def use() -> None:
        cpu = Cpu()
        cpu.nano_cpus = QUARTER
        policy, database = policy_with(cpu, tmp_path)
        monkeypatch.setattr(power, "LEASE_S", 0.0)
        try:
            await policy.start()
            async with asyncio.timeout(60):
                while (await policy.state())["NanoCpus"]:
                    pass
        finally:
            await policy.close()
            database.close()

    asyncio.run(use())


def test_a_limit_that_the_kernel_refuses_is_told(tmp_path: Path, caplog: Any) -> None:
    async def use() -> None:
        cpu = Cpu()
        cpu.refusal = "it needs CONFIG_CFS_BANDWIDTH"
        policy, database = policy_with(cpu, tmp_path)
        try:
            told = await policy.tell(PowerReport(source="battery", nano_cpus=QUARTER))
            assert "CONFIG_CFS_BANDWIDTH" in told["Problem"]
            assert told["NanoCpus"] == 0
            assert (await policy.tell(PowerReport(source="mains")))["Problem"] == ""
        finally:
            await policy.close()
            database.close()

    with caplog.at_level("ERROR"):
        asyncio.run(use())


def test_only_a_power_that_there_is_is_taken(tmp_path: Path) -> None:
    async def use() -> None:
        policy, database = policy_with(Cpu(), tmp_path)
        try:
            for source, nano_cpus in (("", 0), ("sun", 0), ("battery", 1)):
                with pytest.raises(InvalidArgument):
                    await policy.tell(PowerReport(source=source, nano_cpus=nano_cpus))
        finally:
            await policy.close()
            database.close()

    asyncio.run(use())
