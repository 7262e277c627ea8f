"""The driver ``ssh`` keeps the contract with a real sshd on 127.0.0.1."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.driver_contract import DriverContract
from tests.ssh_server import SshServer

from desk.machine.model import MachineSpec

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]


class TestSshHostDriver(DriverContract):
    @pytest.fixture
    def place(self) -> Iterator[Path]:
        """The part of the "remote" file system that the machine may use; it must end empty."""
        directory = Path(tempfile.mkdtemp(prefix="desk-far-"))
        yield directory
        left = [entry.name for entry in directory.iterdir()]
        shutil.rmtree(directory)
        assert left == ["sshd"]

    @pytest.fixture
    def spec(self, place: Path) -> Iterator[MachineSpec]:
        with SshServer(place / "sshd") as server:
            yield MachineSpec(
                "far",
                "ssh",
                options={
                    "ssh_host": "127.0.0.1",
                    "ssh_port": str(server.port),
                    "ssh_user": server.user,
                    "ssh_key": str(server.endpoint.private_key),
                    "ssh_host_key": server.host_key.public,
                    "prefix": str(place / "opt"),
                    "data_root": str(place / "data"),
                    "exec_root": str(place / "run"),
                    "bip": "10.222.34.1/24",
                },
            )
