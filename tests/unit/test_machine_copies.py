"""Machines renamed, cloned, kept and carried, with the fake driver and real files with holes."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.machine_driver import fake_machines

from desk.errors import Conflict, DeskError, ImageError, MachineError, NotFound, UsageError
from desk.machine.archives import MachineArchives
from desk.machine.copies import MachineCopies
from desk.machine.manager import Manager
from desk.machine.model import MachineSpec, State
from desk.machine.sparse import copy_sparse, extents

MIB = 1 << 20


def silent(_sentence: str) -> None:
    return None


@pytest.fixture
def manager() -> Iterator[Manager]:
    with fake_machines() as manager:
        manager.create(MachineSpec("box", "fake", memory_mib=512, cpus=3))
        write_disk(manager, b"first")
        yield manager


@pytest.fixture
def copies(manager: Manager) -> MachineCopies:
    return MachineCopies(manager)


def write_disk(manager: Manager, text: bytes, name: str = "box") -> None:
    """A disk of 64 MiB with data at its begin and in its midst."""
    disk = manager.home.machine(name).data_disk
    with disk.open("wb") as stream:
        stream.write(text)
        stream.seek(32 * MIB)
        stream.write(os.urandom(8192) + b"middle")
        stream.truncate(64 * MIB)


def disk(manager: Manager, name: str = "box") -> bytes:
    return manager.home.machine(name).data_disk.read_bytes()


def room(file: Path) -> int:
    return file.stat().st_blocks * 512


# --- files with holes ---------------------------------------------------------------------------


def test_holes_stay_holes(tmp_path: Path) -> None:
    source = tmp_path / "a"
    with source.open("wb") as stream:
        stream.seek(5 * MIB)
        stream.write(b"x" * 10_000)
        stream.seek(20 * MIB)
        stream.write(bytes(2 * MIB))  # zeros that are there
        stream.truncate(100 * MIB)
    found = list(extents(source))
    assert found[0][0] <= 5 * MIB < found[0][0] + found[0][1]
    assert sum(length for _offset, length in found) < 4 * MIB
    copy_sparse(source, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == source.read_bytes()
    assert room(tmp_path / "b") <= room(source)
    with pytest.raises(FileExistsError):
        copy_sparse(source, tmp_path / "b")
    (tmp_path / "empty").touch()
    assert list(extents(tmp_path / "empty")) == []


# --- names and twins ----------------------------------------------------------------------------


def test_a_renamed_machine_is_the_same_machine(manager: Manager, copies: MachineCopies) -> None:
    before, kept = manager.inspect("box"), disk(manager)
    copies.rename("box", "work")
    assert manager.names() == ["work"]
    after = manager.inspect("work")
    assert (after["name"], after["cpus"]) == ("work", 3)
    assert after["created_at"] == before["created_at"]
    assert disk(manager, "work") == kept
    manager.start("work")
    assert manager.status("work").engine_version == "fake"


def test_a_rename_leaves_the_settings_file_alone(manager: Manager, copies: MachineCopies) -> None:
    manager.home.machine("box").settings.write_text("no TOML")
    copies.rename("box", "work")
    assert manager.inspect("work")["name"] == "work"
    assert manager.home.machine("work").settings.read_text() == "no TOML"


def test_a_rename_that_cannot_be_changes_nothing(manager: Manager, copies: MachineCopies) -> None:
    manager.create(MachineSpec("other", "fake"))
    with pytest.raises(Conflict, match="machine other exists already"):
        copies.rename("box", "other")
    with pytest.raises(UsageError, match="cannot name a machine"):
        copies.rename("box", "../x")
    with pytest.raises(NotFound):
        copies.rename("none", "new")
    manager.start("box")
    with pytest.raises(Conflict, match="machine box is running and cannot be renamed"):
        copies.rename("box", "new")
    assert sorted(manager.names()) == ["box", "other"]
    assert manager.status("box").state is State.RUNNING


def test_of_two_renames_to_one_name_one_wins(manager: Manager, copies: MachineCopies) -> None:
    manager.create(MachineSpec("other", "fake"))
    errors: list[DeskError] = []

    def rename(name: str) -> None:
        try:
            copies.rename(name, "new")
        except DeskError as error:
            errors.append(error)

    threads = [threading.Thread(target=rename, args=(name,)) for name in ("box", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(error) for error in errors] == [Conflict]
    assert "new" in manager.names()
    assert len(manager.names()) == 2


def test_a_clone_has_the_disk_and_goes_its_own_way(manager: Manager, copies: MachineCopies) -> None:
    manager.start("box")
    copies.clone("box", "twin", silent)
    assert manager.status("box").state is State.RUNNING  # it stood still for a moment only
    assert manager.status("twin").state is State.STOPPED
    assert manager.inspect("twin")["memory_mib"] == 512
    assert disk(manager, "twin") == disk(manager)
    write_disk(manager, b"other", "twin")
    assert disk(manager).startswith(b"first")


def test_a_clone_that_fails_leaves_nothing(manager: Manager, copies: MachineCopies) -> None:
    manager.home.machine("box").data_disk.unlink()
    with pytest.raises(MachineError, match=r"data\.img is missing"):
        copies.clone("box", "twin", silent)
    assert manager.names() == ["box"]
    assert not manager.home.machine("twin").directory.exists()


def test_machines_that_are_more_than_files_are_not_copied(
    manager: Manager, copies: MachineCopies
) -> None:
    manager.create(MachineSpec("own", "local"))
    for attempt in (
        lambda: copies.rename("own", "new"),
        lambda: copies.clone("own", "new", silent),
        lambda: copies.snapshot("own", "", silent),
    ):
        with pytest.raises(UsageError, match="machine own is more than its files here"):
            attempt()
    assert sorted(manager.names()) == ["box", "own"]


# --- snapshots ----------------------------------------------------------------------------------


def test_a_snapshot_brings_the_disk_back(manager: Manager, copies: MachineCopies) -> None:
    manager.start("box")
    assert copies.snapshot("box", "good", silent) == "good"
    write_disk(manager, b"spoiled")
    with pytest.raises(Conflict, match="cannot be restored"):
        copies.restore("box", "good", silent)
    manager.stop("box")
    copies.restore("box", "good", silent)
    assert disk(manager).startswith(b"first")
    write_disk(manager, b"again")
    copies.restore("box", "good", silent)  # it stays
    assert disk(manager).startswith(b"first")


def test_snapshots_are_listed_renamed_along_and_removed(
    manager: Manager, copies: MachineCopies
) -> None:
    assert copies.snapshots("box") == []
    named = copies.snapshot("box", "", silent)
    copies.snapshot("box", "b", silent)
    with pytest.raises(Conflict, match="has a snapshot b already"):
        copies.snapshot("box", "b", silent)
    with pytest.raises(UsageError, match="cannot name a snapshot"):
        copies.snapshot("box", "../../x", silent)
    copies.rename("box", "work")
    found = copies.snapshots("work")
    assert {snapshot.name for snapshot in found} == {named, "b"}
    assert all(0 < snapshot.size_bytes < 8 * MIB for snapshot in found)
    copies.remove_snapshot("work", "b")
    for name in ("b", "..", "."):
        with pytest.raises(NotFound, match="has no snapshot"):
            copies.remove_snapshot("work", name)
    assert [snapshot.name for snapshot in copies.snapshots("work")] == [named]


def test_half_a_snapshot_is_none(manager: Manager, copies: MachineCopies) -> None:
    debris = manager.home.machine("box").snapshots / ".half"
    debris.mkdir(parents=True)
    (debris / "data.img").write_bytes(b"half")
    assert copies.snapshots("box") == []
    copies.snapshot("box", "half", silent)
    assert [snapshot.name for snapshot in copies.snapshots("box")] == ["half"]


# --- archives -----------------------------------------------------------------------------------


@pytest.fixture
def archives(manager: Manager, copies: MachineCopies) -> MachineArchives:
    return MachineArchives(manager, copies)


@pytest.mark.parametrize(
    ("ending", "running"), [("tar", False), ("tar.gz", True), ("tar.xz", False)]
)
def test_a_machine_is_carried_in_a_file(
    manager: Manager, archives: MachineArchives, tmp_path: Path, ending: str, running: bool
) -> None:
    if running:
        manager.start("box")
    file = tmp_path / f"box.{ending}"
    archives.write("box", file, silent)
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]
    assert file.stat().st_size < MIB  # nothing of the holes
    done = subprocess.run(["tar", "-tf", file], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["machine.json", "disk"]
    with pytest.raises(Conflict):
        archives.read(file, "", silent)
    assert archives.read(file, "moved", silent) == "moved"
    assert disk(manager, "moved") == disk(manager)
    assert room(manager.home.machine("moved").data_disk) < 2 * MIB
    assert manager.inspect("moved")["cpus"] == 3
    assert not list(manager.home.machine("box").directory.glob("*.copy"))
    manager.start("moved")
    assert manager.status("moved").engine_version == "fake"


def test_nothing_private_is_in_the_file(
    manager: Manager, archives: MachineArchives, tmp_path: Path
) -> None:
    manager.home.machine("box").private_key.write_text("the secret")
    archives.write("box", tmp_path / "box.tar", silent)
    assert b"the secret" not in (tmp_path / "box.tar").read_bytes()


def test_damaged_files_are_named_and_leave_nothing(
    manager: Manager, archives: MachineArchives, tmp_path: Path
) -> None:
    good = tmp_path / "box.tar.gz"
    archives.write("box", good, silent)
    whole = good.read_bytes()
    plain = gzip.decompress(whole)
    spoiled = bytearray(plain)
    spoiled[plain.index(b"middle")] ^= 1
    cases = {
        "cut": whole[: len(whole) // 2],
        "short": plain[: len(plain) // 2],
        "spoiled": bytes(spoiled),
        "empty": b"",
        "text": b"no archive at all\n" * 100,
        "other": _tar(hello=b"there"),
        "newer": _tar(**{"machine.json": b'{"format": 99}'}),
        "odd": _tar(**{"machine.json": b'{"format": 1, "disk_bytes": -1}'}),
        "beyond": _tar(**{"machine.json": _head(plain, extents=[[1 << 40, 10]])}),
        "backwards": _tar(**{"machine.json": _head(plain, extents=[[100, 10], [50, 10]])}),
        "diskless": _tar(**{"machine.json": _head(plain)}),
        "unspecified": _tar(**{"machine.json": _head(plain, spec={"name": 7})}),
    }
    for name, content in cases.items():
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(ImageError, match=rf"/{name} (is no machine|has format 99)"):
            archives.read(file, "moved", silent)
        assert manager.names() == ["box"], name
        assert not manager.home.machine("moved").directory.exists()
    with pytest.raises(ImageError, match="does not exist"):
        archives.read(tmp_path / "none", "moved", silent)
    with pytest.raises(MachineError, match="cannot write"):
        archives.write("box", tmp_path / "no" / "where.tar", silent)


def _tar(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _head(plain: bytes, **changes: object) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        member = archive.extractfile("machine.json")
        assert member is not None
        return json.dumps({**json.load(member), **changes}).encode()
