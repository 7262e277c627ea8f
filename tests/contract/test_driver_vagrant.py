"""The driver ``vagrant`` keeps the contract with a real Vagrant, libvirt and our own box."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.driver_contract import DriverContract
from tests.guest_image import IMAGE, REPOSITORY
from tests.private_libvirt import PrivateLibvirt

from desk.errors import DriverError, ImageError
from desk.machine.manager import Manager
from desk.machine.model import MachineSpec
from desk.paths import Home
from desk.ssh.session import Session

pytestmark = [
    pytest.mark.vagrant,
    pytest.mark.vm,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

BOX = REPOSITORY / "build" / "desk-libvirt.box"


@pytest.fixture(scope="session")
def box() -> Path:
    """Return the repository's Vagrant box, built from today's sources."""
    done = subprocess.run(
        [str(REPOSITORY / "vm-images" / "build"), "--output", str(IMAGE), "--box", "libvirt"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return BOX


class TestVagrantDriver(DriverContract):
    @pytest.fixture(autouse=True)
    def vagrant(
        self, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[None]:
        monkeypatch.setenv("VAGRANT_HOME", str(home.directory / "vagrant-home"))
        with PrivateLibvirt(tmp_path) as libvirt, libvirt.entered():
            yield
            # Before the daemon ends, whatever the test did.
            manager = Manager(home)
            for name in manager.names():
                manager.remove(name)

    @pytest.fixture
    def spec(self, box: Path) -> MachineSpec:
        return MachineSpec(
            "wild",
            "vagrant",
            memory_mib=768,
            disk_gib=8,
            image=str(box),
            options={"accelerator": "tcg", "provider": "libvirt"},
        )

    def end_the_hard_way(self, manager: Manager, name: str) -> None:
        """End a guest that does not end by itself: `vagrant halt` has to pull the plug."""
        with Session.connect(manager.endpoint(name)) as session:
            # The guest's own scripts take this for a shutdown that runs already.
            assert session.run("mkdir /run/desk-shutdown").exit_code == 0
        manager.stop(name, grace_s=2.0)

    def test_missing_box_is_named(self, home: Home) -> None:
        with pytest.raises(ImageError, match=r"/nowhere\.box cannot be read"):
            Manager(home).create(MachineSpec("wild", "vagrant", image="/nowhere.box"))
        assert Manager(home).names() == []

    def test_failure_quotes_vagrant(self, home: Home, tmp_path: Path) -> None:
        noise = tmp_path / "noise.box"
        noise.write_bytes(b"no box")
        manager = Manager(home)
        manager.create(MachineSpec("wild", "vagrant", image=str(noise)))
        with pytest.raises(DriverError, match="vagrant up of machine wild failed: ") as caught:
            manager.start("wild")
        assert "vagrant.log" in caught.value.hint
        assert "Unrecognized archive format" in caught.value.text
        assert "\x1b" not in caught.value.text
