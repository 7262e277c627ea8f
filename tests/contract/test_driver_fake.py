"""The fake driver keeps the contract, so that tests with it say something about real ones."""

from __future__ import annotations

import pytest
from tests.contract.driver_contract import DriverContract
from tests.fakes.machine_driver import FakeDriver

from desk.machine.drivers.table import DriverTable
from desk.machine.model import MachineSpec


class TestFakeDriver(DriverContract):
    def table(self) -> DriverTable:
        return DriverTable({"fake": FakeDriver})

    @pytest.fixture
    def spec(self) -> MachineSpec:
        return MachineSpec("made-up", "fake")
