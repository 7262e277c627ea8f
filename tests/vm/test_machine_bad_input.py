"""What goes wrong with a QEMU machine before its guest runs: one sentence each, nothing left."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.test_machine_images import make_image

from desk.errors import Conflict, DeskError, DriverError, ImageError, MachineError, UsageError
from desk.machine import ports
from desk.machine.images import ImageStore, host_architecture
from desk.machine.manager import Manager
from desk.machine.model import MachineSpec, State
from desk.machine.provisioning import provision
from desk.machine.upgrades import Upgrades
from desk.paths import Home
from desk.ssh.keys import public_line

pytestmark = pytest.mark.vm


@pytest.fixture
def manager() -> Iterator[Manager]:
    directory = Path(tempfile.mkdtemp(prefix="desk-"))
    manager = Manager(Home(directory))
    yield manager
    for name in manager.names():
        manager.remove(name, force=True)
    shutil.rmtree(directory)


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    """A machine whose image is whole by its checksums, and boots nothing."""
    image = make_image(tmp_path / "image")
    return MachineSpec(
        "bad", memory_mib=256, disk_gib=1, image=str(image), options={"accelerator": "tcg"}
    )


def refused(manager: Manager, spec: MachineSpec, kind: type[DeskError], words: str) -> DeskError:
    with pytest.raises(kind, match=words) as caught:
        manager.create(spec)
    assert manager.names() == []
    machines = manager.home.machines
    assert [e for e in machines.iterdir() if e.is_dir()] == []
    return caught.value


def test_qemu_that_is_not_installed(manager: Manager, spec: MachineSpec) -> None:
    missing = replace(spec, options={"qemu": "qemu-system-nothing"})
    error = refused(manager, missing, DriverError, "qemu-system-nothing is not installed")
    assert "Install" in error.hint


def test_specifications_that_cannot_be(manager: Manager, spec: MachineSpec) -> None:
    refused(manager, replace(spec, memory_mib=16), UsageError, "16 MiB of memory are too few")
    refused(manager, replace(spec, cpus=0), UsageError, "at least one CPU")
    refused(manager, replace(spec, options={"ssh_port": "ssh"}), UsageError, "no port number")
    refused(manager, replace(spec, options={"speed": "9"}), UsageError, "no option 'speed'")
    refused(manager, replace(spec, image="/nowhere"), ImageError, "/nowhere does not exist")


def test_corrupt_image(manager: Manager, spec: MachineSpec) -> None:
    kernel = Path(spec.image) / "vmlinux"
    kernel.write_bytes(kernel.read_bytes()[:-1] + b"x")
    error = refused(manager, spec, ImageError, "vmlinux is damaged")
    assert "Install it again" in error.hint


def test_image_damaged_after_creation(manager: Manager, spec: MachineSpec) -> None:
    manager.create(spec)
    (image,) = manager.home.images.iterdir()
    (image / "root.erofs").write_bytes(b"")
    with pytest.raises(ImageError, match=r"root\.erofs has 0 bytes"):
        manager.start("bad")
    assert manager.status("bad").state is State.STOPPED


def test_missing_disk(manager: Manager, spec: MachineSpec) -> None:
    manager.create(spec)
    manager.home.machine("bad").data_disk.unlink()
    with pytest.raises(MachineError, match=r"data\.img is missing"):
        manager.start("bad")


def test_disk_that_was_cut_off(manager: Manager, spec: MachineSpec) -> None:
    manager.create(spec)
    os.truncate(manager.home.machine("bad").data_disk, 700 << 20)
    with pytest.raises(MachineError, match=r"data\.img is cut off: it has 0\.68 of 1 GiB"):
        manager.start("bad")
    assert manager.home.machine("bad").data_disk.stat().st_size == 700 << 20


def test_upgrade_takes_the_newest_image_and_goes_back(
    manager: Manager, spec: MachineSpec, tmp_path: Path
) -> None:
    manager.create(spec)
    upgrades = Upgrades(manager)
    arch = host_architecture()
    same = upgrades.upgrade("bad", "", lambda _sentence: None)
    assert same.before == same.after == f"0.1.0-{arch}"
    newer = make_image(tmp_path / "newer", version="0.2.0")
    done = upgrades.upgrade("bad", str(newer), lambda _sentence: None)
    assert (done.after, done.restarted) == (f"0.2.0-{arch}", False)
    with pytest.raises(MachineError, match="QEMU"):  # it boots nothing, either
        manager.start("bad")
    assert upgrades.back("bad", lambda _sentence: None).after == f"0.1.0-{arch}"
    manager.create(replace(spec, name="other"))
    with pytest.raises(Conflict, match="machine other was never upgraded"):
        upgrades.back("other", lambda _sentence: None)
    ImageStore(manager.home).remove(f"0.2.0-{arch}")
    with pytest.raises(ImageError, match=r"0\.2\.0-.* is not installed"):
        upgrades.back("bad", lambda _sentence: None)


def test_kernel_that_is_none_quotes_qemu(manager: Manager, spec: MachineSpec) -> None:
    manager.create(spec)
    # QEMU may find out before or after its control socket answers.
    with pytest.raises(MachineError, match=r"machine bad.*: qemu: linux kernel") as caught:
        manager.start("bad")
    paths = manager.home.machine("bad")
    assert str(paths.qemu_log) in caught.value.text + caught.value.hint
    assert manager.status("bad").state is State.STOPPED
    assert not paths.qemu_pid.exists()


def test_fixed_port_that_is_taken(manager: Manager, spec: MachineSpec) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        manager.create(replace(spec, options={**spec.options, "ssh_port": str(port)}))
        with pytest.raises(DriverError, match=f"port {port} on 127.0.0.1.* is taken") as caught:
            manager.start("bad")
    assert "ssh_port" in caught.value.hint
    assert manager.status("bad").state is State.STOPPED


def test_chosen_port_that_is_taken_moves_with_its_known_host(
    manager: Manager, spec: MachineSpec
) -> None:
    manager.create(spec)
    before = manager.endpoint("bad")
    assert f"[127.0.0.1]:{before.port} ssh-ed25519 " in before.known_hosts.read_text()
    said: list[str] = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", before.port))
        other.listen()
        with pytest.raises(MachineError, match="kernel"):  # it is none
            manager.start("bad", said.append)
    after = manager.endpoint("bad")
    assert after.port != before.port
    assert f"[127.0.0.1]:{after.port} ssh-ed25519 " in after.known_hosts.read_text()
    assert any(f"port {before.port}" in text or str(before.port) in text for text in said)


def test_a_port_that_is_taken_while_qemu_starts_moves_too(
    manager: Manager, spec: MachineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.create(spec)
    before = manager.endpoint("bad")
    is_free = ports.is_free
    looks = iter([True])  # the first look comes a moment too early
    monkeypatch.setattr(ports, "is_free", lambda port: next(looks, None) or is_free(port))
    with socket.socket() as other:
        other.bind(("127.0.0.1", before.port))
        other.listen()
        with pytest.raises(MachineError, match="kernel"):  # it is none
            manager.start("bad")
    after = manager.endpoint("bad")
    assert after.port != before.port
    assert f"[127.0.0.1]:{after.port} ssh-ed25519 " in after.known_hosts.read_text()


def test_provisioning_makes_lost_and_damaged_keys_anew(manager: Manager, spec: MachineSpec) -> None:
    manager.create(spec)
    paths = manager.home.machine("bad")
    sound = paths.private_key.read_text()
    paths.public_key.write_text("ssh-ed25519 AAAA somebody else's\n")
    paths.guest_host_key.write_text("half a key")
    for lost in (paths.seed_disk, paths.known_hosts):
        lost.unlink()
    assert provision(manager, "bad", lambda _sentence: None) is False
    assert paths.private_key.read_text() == sound  # nothing was wrong with it
    assert paths.public_key.read_text().strip() == public_line(paths.private_key, "desk-bad")
    assert public_line(paths.guest_host_key).split()[1] in paths.known_hosts.read_text()
    with tarfile.open(paths.seed_disk) as seed:
        authorized = seed.extractfile("authorized_keys")
        assert authorized is not None
        assert authorized.read().decode().strip() == paths.public_key.read_text().strip()
    paths.private_key.unlink()
    provision(manager, "bad", lambda _sentence: None)
    assert paths.private_key.read_text() != sound
    assert paths.private_key.stat().st_mode & 0o777 == 0o600


def test_two_machines_have_two_ports(manager: Manager, spec: MachineSpec) -> None:
    manager.create(spec)
    taken = manager.endpoint("bad").port
    for name in ("a", "b", "c"):
        manager.create(replace(spec, name=name))
    endpoints = {manager.endpoint(name).port for name in manager.names()}
    assert len(endpoints) == 4
    assert taken in endpoints
    assert all(ports.FIRST <= port <= ports.LAST for port in endpoints)


def test_disk_is_sparse_and_private(manager: Manager, spec: MachineSpec) -> None:
    manager.create(replace(spec, disk_gib=60))
    paths = manager.home.machine("bad")
    disk = paths.data_disk.stat()
    assert disk.st_size == 60 << 30
    assert disk.st_blocks * 512 < 1 << 20
    for file in paths.directory.iterdir():
        assert file.name.endswith(".pub") or file.stat().st_mode & 0o077 == 0, file


def fill(filler: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(b"x" * 1024)
            file.flush()


@pytest.mark.root
def test_full_disk(tmp_path: Path, spec: MachineSpec) -> None:
    small = tmp_path / "s"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140k", "tmpfs", str(small)], check=True)
    try:
        manager = Manager(Home(small))
        manager.create(replace(spec, name="first"))
        filler = small / "filler"
        fill(filler)
        with pytest.raises(DeskError, match="No space left on device") as caught:
            manager.create(spec)
        assert "Make room" in caught.value.hint
        assert manager.names() == ["first"]
        assert not small.joinpath("machines", "bad").exists()
        manager.remove("first")
    finally:
        subprocess.run(["umount", str(small)], check=True)
