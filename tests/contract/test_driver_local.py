"""The driver ``local`` keeps the contract with a real engine on this Linux."""

from __future__ import annotations

import pytest
from tests.contract.driver_contract import DriverContract

from desk.machine.model import MachineSpec

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


class TestLocalDriver(DriverContract):
    @pytest.fixture
    def spec(self) -> MachineSpec:
        return MachineSpec("here", "local", options={"bip": "10.222.33.1/24"})
