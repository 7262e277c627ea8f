"""The layer store: unpacked layers in numbered directories that the database names.

``layers/<number>/`` holds ``diff`` (the unpacked layer, a lower directory of overlayfs),
``recipe`` and ``replaced`` (how its tar is made again). A layer is unpacked below ``tmp`` and
renamed into place inside the transaction that records it; what a killed engine leaves is either
below ``tmp`` or a directory that no record names, and both go at the next start. The same holds
when the power fails: a record comes to the disk after its directory, and goes from it before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from deskd import errors
from deskd.domain.binned import Kind
from deskd.domain.image import BinnedImage, ImageRecord, LayerRecord, chain_ids, short_id
from deskd.images.pack import IterReader
from deskd.images.recipe import Replacement, replay
from deskd.images.streams import ByteReader
from deskd.images.unpack import Unpacked, unpack
from deskd.kernel.files import sync_directory, sync_file_system
from deskd.layout import DataRoot
from deskd.record import Record
from deskd.store import records
from deskd.store.database import Database

MAXIMUM_LAYERS = 128
"""What overlayfs options of one page hold with room to spare; Docker's limit, too."""

_COUNTER = "layer-number"


class StagedLayer(Record):
    """A layer that is unpacked below ``tmp`` but not recorded yet."""

    directory: str
    unpacked: Unpacked

    @property
    def is_there(self) -> bool:
        """False when the store has taken it over already."""
        return Path(self.directory).is_dir()


class LayerStore:
    """Layers by chain ID. Methods block; each may be called from any thread."""

    def __init__(self, root: DataRoot, database: Database) -> None:
        self._root = root
        self._database = database
        self._layers = records.layers(database)
        self._images = records.images(database)
        self._roots = records.roots(database)
        self._blobs = records.blobs(database)
        self._binned = records.binned(database)
        self._held: Counter[str] = Counter()  # guarded by the database's transaction, too
        self._spared = False  # a held layer was found unused; guarded like the ones before
        self._placed: list[LayerRecord] | None = None  # guarded by the database's transaction
        self._scratch: set[str] = set()  # what of ``tmp`` is in use now; guarded by its lock
        self._scratch_lock = threading.Lock()
        for directory in (root.layers, root.temporary):
            Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)

    # --- looking --------------------------------------------------------------------------------

    def get(self, chain_id: str) -> LayerRecord | None:
        """Return a layer's record, or None."""
        return self._layers.get(chain_id)

    def all(self) -> list[LayerRecord]:
        """Return every layer."""
        return self._layers.all()

    def chain(self, top: str) -> list[LayerRecord]:
        """Return a layer and all below it, top first; an empty ``top`` has none.

        Raises ``DataLoss`` where a layer is missing.
        """
        chain: list[LayerRecord] = []
        while top:
            record = self._layers.get(top)
            if record is None:
                raise errors.DataLoss(
                    f"the layer {short_id(top)} is missing from the layer store: pull or load its "
                    "image again"
                )
            chain.append(record)
            top = record.parent
        return chain

    def are_here(self, diff_ids: Sequence[str]) -> bool:
        """Say whether all layers of an image are in the store."""
        return all(self._layers.has(chain_id) for chain_id in chain_ids(list(diff_ids)))

    def relative_directory(self, record: LayerRecord) -> str:
        """Return the layer's directory from ``DataRoot.layers``; short, for mount options."""
        return f"{record.number}/diff"

    def directory(self, record: LayerRecord) -> str:
        """Return the layer's unpacked directory."""
        return str(self._place(record.number) / "diff")

    def place(self, record: LayerRecord) -> Path:
        """Return the directory with all that belongs to the layer."""
        return self._place(record.number)

    def total_size(self) -> int:
        """Return the bytes of all layers, each counted once, without those of the bin."""
        with self._database.transaction():
            binned = sum(record.size_bytes for record in self.unused(with_bin=False))
            return sum(record.size_bytes for record in self.all()) - binned

    # --- adding ---------------------------------------------------------------------------------

    def stage(
        self,
        source: ByteReader,
        on_progress: Callable[[int], None] | None = None,
        *,
        synced: bool = True,
    ) -> StagedLayer:
        """Unpack a plain tar below ``tmp``; end it with ``record`` or ``discard``.

        Who stages several layers without ``synced`` calls ``sync`` once before it records them.
        Raises ``ResourceExhausted``.
        """
        self._database.check_room()
        try:
            directory = self._scratch_directory("layer-")
        except OSError as error:
            raise errors.ResourceExhausted(
                f"the layer store {self._root.temporary} cannot take a layer ({error.strerror}): "
                "free space on its disk"
            ) from error
        try:
            place = Path(directory)
            place.joinpath("diff").mkdir(0o755)
            place.joinpath("replaced").mkdir(0o700)
            unpacked = unpack(
                source,
                str(place / "diff"),
                recipe=str(place / "recipe"),
                replaced_root=str(place / "replaced"),
                on_progress=on_progress,
            )
            if unpacked.replaced:
                place.joinpath("replaced.json").write_text(_encoded(unpacked.replaced))
            if synced:
                self.sync()
        except BaseException:
            self._remove_tree(directory)
            raise
        return StagedLayer(directory, unpacked)

    def sync(self) -> None:
        """Bring what was staged to the disk: a record must never outlive a crash of the machine
        that its files did not survive."""
        sync_file_system(self._root.temporary)

    def record(self, parent: str, staged: StagedLayer) -> LayerRecord:
        """Make a staged layer part of the store, on top of ``parent`` ("" for none); idempotent
        by content. Call it inside ``recording``, with what records the layer's use."""
        diff_id = staged.unpacked.diff_id
        with self._database.transaction():
            below = self.chain(parent)
            if len(below) >= MAXIMUM_LAYERS:
                raise errors.InvalidArgument(
                    f"max depth exceeded: an image has at most {MAXIMUM_LAYERS} layers"
                )
            chain_id = chain_ids([parent, diff_id])[1] if parent else diff_id
            existing = self._layers.get(chain_id)
            if existing is not None:
                return existing
            record = LayerRecord(
                chain_id=chain_id,
                diff_id=diff_id,
                number=self._database.next_number(_COUNTER),
                parent=parent,
                size_bytes=staged.unpacked.size_bytes,
                tar_bytes=staged.unpacked.tar_bytes,
            )
            # Before the insertion: a killed engine then leaves a directory without a record,
            # which the next start sweeps, and never a record without a directory.
            self._take_over(staged, record.number)
            if self._placed is not None:
                self._placed.append(record)
            self._layers.insert(record)
            return record

    def _take_over(self, staged: StagedLayer, number: int) -> None:
        Path(staged.directory).rename(self._place(number))
        with self._scratch_lock:
            self._scratch.discard(staged.directory)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A transaction in which ``record`` is called; may be nested. When it fails, the
        directories of the layers that it recorded go as the records do. When the outermost one
        ends, the records are on the disk."""
        placed: list[LayerRecord] = []
        outermost = False
        try:
            with self._database.transaction():
                outermost = self._placed is None
                if outermost:
                    self._placed = placed
                try:
                    yield
                    if placed:
                        # Nothing says in which order the disk gets a rename and the commit.
                        sync_directory(self._root.layers)
                finally:
                    if outermost:
                        self._placed = None
        except BaseException:
            for record in placed:
                self.remove_tree(self._place(record.number))
            raise
        if outermost:
            self._database.flush()

    @contextmanager
    def holding(self, chain_ids: Iterable[str]) -> Iterator[None]:
        """Keep these layers, there or not yet, from ``release_unused`` while the body runs."""
        held = list(chain_ids)
        with self._database.transaction():
            self._held.update(held)
        try:
            yield
        finally:
            with self._database.transaction():
                self._held.subtract(held)
                self._held += Counter()  # drops those that nobody holds
                spared, self._spared = self._spared, False
            if spared:
                self.release_unused()  # what came to nothing may have been all that needed them

    @contextmanager
    def copies(
        self, diff_ids: Sequence[str], staged: Sequence[StagedLayer]
    ) -> Iterator[list[StagedLayer]]:
        """Stage again what an image needs more often than it was staged: a layer that stands twice
        in one image, or in another place of an image that is here already."""
        there = {layer.directory: layer.unpacked.diff_id for layer in staged if layer.is_there}
        free = Counter(there.values())
        known = {record.diff_id: record for record in self.all()}
        with ExitStack() as undo:
            made: list[StagedLayer] = []
            for diff_id, chain_id in zip(diff_ids, chain_ids(list(diff_ids)), strict=True):
                if self.get(chain_id) is not None:
                    continue
                if free[diff_id] > 0:
                    free[diff_id] -= 1
                    continue
                source = self._source(diff_id, known, staged)
                if source is not None:
                    made.append(self.stage(IterReader(source)))
                    undo.callback(self.discard, made[-1])
            yield made

    def _source(
        self, diff_id: str, known: dict[str, LayerRecord], staged: Sequence[StagedLayer]
    ) -> Iterator[bytes] | None:
        if diff_id in known:
            return self.open_tar(known[diff_id])
        for layer in staged:
            if layer.unpacked.diff_id == diff_id and layer.is_there:
                return self._replay(Path(layer.directory))
        return None

    def discard(self, staged: StagedLayer) -> None:
        """Remove what ``stage`` made, unless ``record`` took it over; idempotent."""
        self._remove_tree(staged.directory)

    # --- giving out -----------------------------------------------------------------------------

    def open_tar(self, record: LayerRecord) -> Iterator[bytes]:
        """Yield the layer's tar, byte for byte as it came.

        Raises ``DataLoss`` at the end where the bytes do not have the layer's diff ID.
        """
        digest = hashlib.sha256()
        for chunk in self._replay(self._place(record.number)):
            digest.update(chunk)
            yield chunk
        if f"sha256:{digest.hexdigest()}" != record.diff_id:
            raise errors.DataLoss(
                f"the layer {short_id(record.diff_id)} was changed on disk: load or import its "
                "image again"
            )

    @staticmethod
    def _replay(base: Path) -> Iterator[bytes]:
        replaced: Sequence[Replacement] = ()
        with suppress(FileNotFoundError):
            replaced = decoded(base.joinpath("replaced.json").read_text())
        return replay(str(base / "recipe"), str(base / "diff"), replaced, str(base / "replaced"))

    # --- removing -------------------------------------------------------------------------------

    def release_unused(self) -> list[LayerRecord]:
        """Remove the layers that no image and no container stands on; return them."""
        with self._database.transaction():
            unused = self.forget_unused()
            places = [self._place(record.number) for record in unused]
            with self._scratch_lock:
                self._scratch.update(map(str, places))
        # Afterwards: a killed engine leaves directories without a record, never the reverse.
        if places:
            self._database.flush()
            self._remove_trees(places)
        return unused

    def unused(self, *, with_bin: bool = True) -> list[LayerRecord]:
        """Return the layers that no image and no container stands on and that nothing holds;
        without the bin, also those that only its images and containers need."""
        with self._database.transaction():
            records_ = self._layers.all()
            by_chain_id = {record.chain_id: record for record in records_}
            used: set[str] = set()
            for image in self._images.all():
                used.update(chain_ids(image.config.diff_ids))
            if with_bin:
                for image in self.binned_images():
                    used.update(chain_ids(image.config.diff_ids))
            binned = set() if with_bin else {entry.id for entry in self._binned.all()}
            for root in self._roots.all():
                if root.container_id in binned:
                    continue
                top = root.chain_id
                while top and top not in used and top in by_chain_id:
                    used.add(top)
                    top = by_chain_id[top].parent
            if any(record.chain_id in self._held and record.chain_id not in used
                   for record in records_):  # fmt: skip
                self._spared = True
            used.update(self._held)
            return [record for record in records_ if record.chain_id not in used]

    def binned_images(self) -> list[ImageRecord]:
        """Return the images of the bin."""
        entries = self._binned.find("kind", Kind.IMAGE)
        found = [msgspec.json.decode(entry.payload, type=BinnedImage) for entry in entries]
        return [entry.image for entry in found if entry.image is not None]

    def forget_unused(self) -> list[LayerRecord]:
        """Delete the records of unused layers; ``sweep`` removes their directories."""
        with self._database.transaction():
            unused = self.unused()
            for record in unused:
                self._layers.delete(record.chain_id)
            if unused:
                kept = {record.diff_id for record in self._layers.all()}
                for diff_id in {record.diff_id for record in unused} - kept:
                    self._blobs.delete(diff_id)
        return unused

    def remove_tree(self, directory: Path) -> None:
        """Remove a directory of the data root: it is out of sight at once, and then emptied."""
        self._remove_trees([directory])

    def _remove_trees(self, directories: Sequence[Path]) -> None:
        there = [directory for directory in directories if directory.exists()]
        trash = self._put_away(there) if there else ""
        with self._scratch_lock:
            self._scratch.difference_update(map(str, directories))
        if trash:
            self._remove_tree(trash)

    def drop(self, record: LayerRecord) -> None:
        """Take a damaged layer out of the store, although images stand on it: they lack it then,
        and pulling or loading them again brings it back."""
        self._layers.delete(record.chain_id)
        self._database.flush()
        self.remove_tree(self._place(record.number))

    def replace(self, record: LayerRecord, staged: StagedLayer) -> None:
        """Give a damaged layer its content again."""
        if staged.unpacked.diff_id != record.diff_id:
            raise errors.DataLoss(f"the copy of the layer {short_id(record.diff_id)} is another")
        with self._database.transaction():
            trash = self._put_away([self._place(record.number)])
            self._take_over(staged, record.number)
        sync_directory(self._root.layers)
        self._remove_tree(trash)

    def _put_away(self, directories: Sequence[Path]) -> str:
        """Move directories to a new one below ``tmp``."""
        trash = self._database.with_room(lambda: self._scratch_directory("removed-"))
        for number, directory in enumerate(directories):
            with suppress(FileNotFoundError):
                directory.rename(Path(trash, str(number)))
        return trash

    def _scratch_directory(self, prefix: str) -> str:
        with self._scratch_lock:
            directory = tempfile.mkdtemp(prefix=prefix, dir=self._root.temporary)
            self._scratch.add(directory)
        return directory

    def leftovers(self) -> list[Path]:
        """Return the directories of layers that have no record, and those below ``tmp`` that
        nothing works on."""
        with self._database.transaction(), self._scratch_lock:
            found = self._unrecorded()
            found += [
                place
                for place in Path(self._root.temporary).iterdir()
                if place.name.startswith(("layer-", "removed-"))
            ]
            return [place for place in found if str(place) not in self._scratch]

    def sweep(self) -> threading.Thread:
        """Put out of the way what a killed engine left; call at start, before anything else.

        Returns the thread that then removes it, which nobody needs to wait for: what it does not
        get done is left for the next start.
        """
        leftovers = self._unrecorded()
        leftovers += Path(self._root.temporary).iterdir()
        if leftovers:
            self._database.flush()  # their records may have been deleted a moment ago
        trash = self._put_away(leftovers)
        removing = threading.Thread(
            target=shutil.rmtree, args=(trash,), kwargs={"ignore_errors": True}, daemon=True
        )
        removing.start()
        return removing

    def _unrecorded(self) -> list[Path]:
        known = {str(record.number) for record in self._layers.all()}
        known.add(Path(self._root.mount_points).name)
        return [place for place in Path(self._root.layers).iterdir() if place.name not in known]

    def _place(self, number: int) -> Path:
        return Path(self._root.layers, str(number))

    def _remove_tree(self, directory: str) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(directory)
        with self._scratch_lock:
            self._scratch.discard(directory)


def _encoded(replaced: Sequence[Replacement]) -> str:
    """Return the replacements as JSON; names that are not UTF-8 are escaped in it."""
    return json.dumps([{"entry": r.entry, "number": r.number, "path": r.path} for r in replaced])


def decoded(text: str) -> list[Replacement]:
    """Read what ``_encoded`` wrote."""
    return [Replacement(**fields) for fields in json.loads(text)]
