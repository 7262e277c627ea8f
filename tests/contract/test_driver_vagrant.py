"""The driver ``vagrant`` keeps the contract with a real Vagrant, libvirt and our own box."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli_process import DESK
from tests.contract.driver_contract import DriverContract
from tests.guest_image import libvirt_box
from tests.private_libvirt import PrivateLibvirt

from desk.errors import DriverError, ImageError
from desk.machine.disks import MachineDisks
from desk.machine.manager import Manager
from desk.machine.memory import MemoryDial
from desk.machine.model import MachineSpec
from desk.machine.settings_change import MachineSettings, Wishes
from desk.paths import Home
from desk.ssh.session import Session

__all__ = ["libvirt_box"]

pytestmark = [
    pytest.mark.vagrant,
    pytest.mark.vm,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


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
    def spec(self, libvirt_box: Path) -> MachineSpec:
        return MachineSpec(
            "wild",
            "vagrant",
            memory_mib=768,
            disk_gib=8,
            image=str(libvirt_box),
            options={"accelerator": "tcg", "provider": "libvirt"},
        )

    def end_the_hard_way(self, manager: Manager, name: str) -> None:
        """End a guest that does not end by itself: `vagrant halt` has to pull the plug."""
        with Session.connect(manager.endpoint(name)) as session:
            # The guest's own scripts take this for a shutdown that runs already.
            assert session.run("mkdir /run/desk-shutdown").exit_code == 0
        manager.stop(name, grace_s=2.0)

    def test_folders_become_devices_of_a_machine_that_was_made_without(
        self, home: Home, spec: MachineSpec, tmp_path: Path
    ) -> None:
        folder = tmp_path / "shared"
        folder.mkdir()
        (folder / "note").write_text("mine\n")
        manager = Manager(home)
        settings = MachineSettings(manager, MemoryDial(manager), MachineDisks(manager))
        manager.create(spec)
        manager.start(spec.name)

        def share(by: str, folders: str) -> None:
            wishes = Wishes(options={"share_by": by, "share_folder": folders})
            settings.set(spec.name, wishes, lambda _text: None)

        def read() -> str:
            environment = {**os.environ, "DESK_HOME": str(home.directory)}
            words = ("run", "--rm", "-v", f"{folder}:/s", "busybox")
            script = "cat /s/note; grep ' /s ' /proc/mounts"
            done = subprocess.run(
                [DESK, "--machine", spec.name, *words, "sh", "-c", script],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        # What would leave the machine without a start is refused, and the machine runs on.
        for folders, why in (
            (f"{folder.parent},{folder}:ro", f"keep it from writing {folder}"),
            (str(home.directory.parent), f"keep {home.directory} from it"),
        ):
            with pytest.raises(DriverError, match=why):
                share("virtiofs", folders)
        assert manager.open(spec.name).record.spec == spec

        share("sftp", str(folder))
        assert "mine\n" in read()
        assert " fuse.sshfs " in read()
        share("virtiofs", str(folder))
        manager.restart(spec.name)
        assert "mine\n" in read()
        assert " virtiofs " in read()
        share("sftp", str(folder))
        manager.restart(spec.name)
        assert " fuse.sshfs " in read()

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
