"""The driver ``qemu`` keeps the contract with a real virtual machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.contract.driver_contract import DriverContract
from tests.guest_image import guest_image

from desk.machine.model import MachineSpec

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]


class TestQemuDriver(DriverContract):
    @pytest.fixture
    def spec(self, guest_image: Path) -> MachineSpec:
        return MachineSpec("virtual", "qemu", memory_mib=768, disk_gib=4, image=str(guest_image))
