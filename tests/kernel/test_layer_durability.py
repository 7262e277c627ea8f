"""What the layer store's disk gets first: a record never comes before its directory, and a
directory never goes before its record. A loss of power may come between any two steps."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deskd.domain.image import LayerRecord
from deskd.domain.reference import from_repository
from deskd.images import importing, removal
from deskd.images.pack import IterReader
from tests.kernel.image_store import Stores, directory, entry, stores, tar

pytestmark = pytest.mark.root

FIRST = tar(directory("etc"), entry("etc/os-release", b"ID=x\n"))
SECOND = tar(entry("hello", b"hello\n"))


class Disk:
    """Notes, at each sync of the layers' directory or of the database's log, which layers have a
    directory and which have a committed record then."""

    def __init__(self, opened: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stores = opened
        self.directory_syncs: list[tuple[set[str], set[str]]] = []
        self.log_syncs: list[tuple[set[str], set[str]]] = []
        self._note(monkeypatch, "fsync", opened.root.layers, self.directory_syncs)
        self._note(monkeypatch, "fdatasync", f"{opened.root.database}-wal", self.log_syncs)

    def _note(
        self,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        path: str,
        noted: list[tuple[set[str], set[str]]],
    ) -> None:
        real: Callable[[int], None] = getattr(os, name)

        def sync(fd: int) -> None:
            real(fd)
            if os.path.realpath(path) == str(Path(f"/proc/self/fd/{fd}").readlink()):
                noted.append((self.stores.layer_directories(), self.committed()))

        monkeypatch.setattr(os, name, sync)

    def committed(self) -> set[str]:
        """Return the numbers of the layers that another connection to the database sees."""
        with contextlib.closing(sqlite3.connect(self.stores.root.database)) as other:
            return {str(number) for (number,) in other.execute("SELECT number FROM layers")}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    with stores(tmp_path / "data") as opened:
        yield Disk(opened, monkeypatch)


def import_(opened: Stores, data: bytes, name: str) -> LayerRecord:
    wanted = importing.ImportRequest(reference=from_repository(name))
    record = importing.import_image(opened.catalog, IterReader(iter([data])), wanted)
    layer = opened.layers.get(record.config.diff_ids[0])
    assert layer is not None
    return layer


def test_a_new_layers_place_is_on_the_disk_before_its_record(disk: Disk) -> None:
    first = import_(disk.stores, FIRST, "first")
    second = import_(disk.stores, SECOND, "second")
    one, two = str(first.number), str(second.number)
    assert disk.directory_syncs == [({one}, set()), ({one, two}, {one})]
    assert disk.committed() == {one, two}
    import_(disk.stores, SECOND, "again")
    assert len(disk.directory_syncs) == 2, "nothing came to the store"


def test_layers_of_one_image_are_synced_once(disk: Disk) -> None:
    layers = disk.stores.layers
    with layers.recording():
        below = layers.record("", layers.stage(IterReader(iter([FIRST]))))
        above = layers.record(below.chain_id, layers.stage(IterReader(iter([SECOND]))))
    assert disk.directory_syncs == [({str(below.number), str(above.number)}, set())]


def removed(opened: Stores, layer: LayerRecord) -> None:
    done = removal.remove(opened.catalog, lambda: [], "image", force=False, prune_parents=True)
    assert {"Deleted": layer.chain_id} in [step.report for step in done]


def dropped(opened: Stores, layer: LayerRecord) -> None:
    opened.layers.drop(layer)


def swept(opened: Stores, layer: LayerRecord) -> None:
    """As at the start of an engine that was killed between an image and its layers."""
    image = opened.catalog.get("image")
    opened.catalog.untag(from_repository("image"))
    opened.catalog.delete(image.id)
    assert opened.layers.forget_unused() == [layer]
    opened.layers.sweep().join()


@pytest.mark.parametrize("remove", [removed, dropped, swept])
def test_a_record_is_off_the_disk_before_its_directory(
    disk: Disk, remove: Callable[[Stores, LayerRecord], None]
) -> None:
    layer = import_(disk.stores, FIRST, "image")
    disk.stores.database.flush()
    remove(disk.stores, layer)
    assert ({str(layer.number)}, set()) in disk.log_syncs
    assert disk.stores.layer_directories() == set()


def test_a_layer_that_was_made_again_is_in_its_place_before_the_damaged_one_goes(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = import_(disk.stores, FIRST, "image")
    damaged = Path(disk.stores.layers.directory(layer), "etc/os-release")
    damaged.write_bytes(b"")
    rmtree = shutil.rmtree
    syncs_before = len(disk.directory_syncs)
    syncs_at_removal: list[int] = []

    def remove(path: str) -> None:
        syncs_at_removal.append(len(disk.directory_syncs) - syncs_before)
        rmtree(path)

    staged = disk.stores.layers.stage(IterReader(iter([FIRST])))
    monkeypatch.setattr(shutil, "rmtree", remove)
    disk.stores.layers.replace(layer, staged)
    assert syncs_at_removal == [1]
    assert damaged.read_bytes() == b"ID=x\n"
