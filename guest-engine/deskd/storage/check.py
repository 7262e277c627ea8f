"""The check of the store: what the database, the disk and the containers say of each other.

Everything is looked at while the engine works: what comes and goes meanwhile is not taken for
damage. Each ``Finding`` is one sentence; with ``repair`` it is mended where that is possible, and
its ``outcome`` says what was done and what is lost. There are no stored reference counts: who
uses a layer is computed, so that it cannot be wrong.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from msgspec import structs

from deskd import errors
from deskd.domain.image import (
    DIGEST_PREFIX,
    ImageRecord,
    LayerRecord,
    RootRecord,
    chain_ids,
    short_id,
)
from deskd.images.layer_check import content_problem, sizes_problem
from deskd.images.layers import LayerStore
from deskd.images.pack import IterReader
from deskd.kernel.mount import MNT_DETACH, umount2
from deskd.layout import DataRoot
from deskd.record import Record
from deskd.store import records
from deskd.store.database import Database


class Finding(Record):
    """One thing that is wrong. ``outcome`` is what became of it, or what to do."""

    problem: str
    repaired: bool
    outcome: str


class Containers(Protocol):
    """The containers that the check compares the store with. May be asked from any thread."""

    def known(self) -> set[str]:
        """Return the ID of every container, also of those that are being made or removed now."""

    def running(self) -> set[str]:
        """Return the IDs of those whose processes run."""

    def volume_uses(self) -> dict[str, set[str]]:
        """Return the names of each container's volumes, by its ID."""


class Roots(Protocol):
    """The containers' roots."""

    def restore(self, container_id: str) -> None:
        """Make the directories of a root again that are missing, as they were when it was new."""


class Volumes(Protocol):
    """The volumes. May be asked from any thread."""

    def without_directory(self) -> list[str]:
        """Return the names of volumes whose files are gone."""

    def without_record(self) -> list[str]:
        """Return the names of directories that belong to no volume."""

    def recover(self, name: str) -> None:
        """Make what is missing of a volume; raises ``InvalidArgument`` for an impossible name."""

    def mountpoint(self, name: str) -> str:
        """Return where a volume's files are."""


class StoreCheck:
    """One check. ``run`` blocks for as long as the disk takes."""

    def __init__(
        self,
        root: DataRoot,
        database: Database,
        layers: LayerStore,
        containers: Containers,
        container_roots: Roots,
        volumes: Volumes,
        *,
        repair: bool = False,
        deep: bool = False,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``tell`` is called with what is looked at next; raising in it ends the check."""
        self._tell = tell
        self._root = root
        self._database = database
        self._layers = layers
        self._containers = containers
        self._container_roots = container_roots
        self._volumes = volumes
        self._repair = repair
        self._deep = deep
        self._images = records.images(database)
        self._tags = records.tags(database)
        self._blobs = records.blobs(database)
        self._roots = records.roots(database)

    def run(self) -> Iterator[Finding]:
        """Look at everything, layers before what stands on them."""
        yield from self._check_database()
        yield from self._check_mounts()
        yield from self._check_leftovers()
        layers = self._layers.all()
        for number, layer in enumerate(layers, start=1):
            self._tell(f"layer {number} of {len(layers)}")
            yield from self._check_layer(layer)
        yield from self._check_images()
        yield from self._check_roots()
        yield from self._check_volumes()
        yield from self._check_unused()

    def _found(
        self, problem: str, repair: Callable[[], object] | None, done: str, advice: str = ""
    ) -> Finding:
        """Return a finding; ``done`` says what ``repair`` did, ``advice`` what a person can do."""
        if repair is None:
            return Finding(problem, False, advice)
        if not self._repair:
            return Finding(problem, False, advice or "run the check with --repair")
        try:
            repair()
        except (OSError, errors.DeskdError) as error:
            return Finding(problem, False, f"it cannot be repaired: {error}")
        return Finding(problem, True, done)

    # --- database and disk ----------------------------------------------------------------------

    def _check_database(self) -> Iterator[Finding]:
        pragma = "integrity_check" if self._deep else "quick_check"
        for (verdict,) in self._database.execute(f"PRAGMA {pragma}"):
            if verdict != "ok":
                yield self._found(
                    f"the database {self._database.path} is damaged ({verdict})", None, "",
                    "restore it from a backup, or move the data root away to begin anew",
                )  # fmt: skip

    def _check_mounts(self) -> Iterator[Finding]:
        """Containers' roots are mounted in their own mount namespaces only."""
        bases = (self._root.layers, self._root.containers, self._root.temporary)
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            targets = [line.split()[4] for line in file]
        for target in reversed(targets):
            place = target.encode("utf-8", "surrogateescape").decode("unicode_escape")
            if any(place.startswith(f"{base}/") for base in bases):
                yield self._found(
                    f"something is mounted at {place}, where only files of the store belong",
                    partial(umount2, place, MNT_DETACH),
                    "it was unmounted",
                )

    def _check_leftovers(self) -> Iterator[Finding]:
        for place in self._layers.leftovers():
            yield self._found(
                f"the directory {place} belongs to no layer",
                partial(shutil.rmtree, place),
                "it was removed",
            )
        for place in _entries(self._root.containers):
            if place.name not in self._containers.known() and place.is_dir():
                yield self._found(
                    f"the directory {place} belongs to no container",
                    partial(shutil.rmtree, place),
                    "it was removed",
                )

    # --- layers ---------------------------------------------------------------------------------

    def _check_layer(self, layer: LayerRecord) -> Iterator[Finding]:
        problem = self._layer_problem(layer)
        if not problem or self._layers.get(layer.chain_id) is None:
            return  # it was removed while it was looked at
        text = f"the layer {short_id(layer.chain_id)} is damaged: {problem}"
        users = self._containers_on(layer) & self._containers.running()
        if users:
            names = ", ".join(sorted(user[:12] for user in users))
            yield self._found(text, None, "", f"stop the containers {names}, then repair it")
        elif (copy := self._copy_of(layer)) is not None:
            yield self._found(
                text, lambda: self._copy(copy, layer), "it was made again from a copy"
            )
        else:
            yield self._found(
                text, lambda: self._layers.drop(layer),
                "it was removed; what stands on it works again once its image is pulled or loaded",
            )  # fmt: skip

    def _layer_problem(self, layer: LayerRecord) -> str:
        expected = layer.diff_id
        if layer.parent:
            expected = chain_ids([layer.parent, layer.diff_id])[1]
        if layer.chain_id != expected:
            return "its record contradicts itself"
        try:
            problem = sizes_problem(self._layers.place(layer), layer)
            if not problem and self._deep:
                tar = self._layers.open_tar(layer)
                scratch = self._root.temporary
                problem = content_problem(self._layers.place(layer), tar, scratch)
        except OSError as error:
            return f"it cannot be read ({error.strerror})"
        return problem

    def _containers_on(self, layer: LayerRecord) -> set[str]:
        found = set()
        for root in self._roots.all():
            top: LayerRecord | None = self._layers.get(root.chain_id)
            while top is not None and top.chain_id != layer.chain_id:
                top = self._layers.get(top.parent)
            if top is not None:
                found.add(root.container_id)
        return found

    def _copy_of(self, layer: LayerRecord) -> LayerRecord | None:
        """Return another layer with the same content."""
        for other in self._layers.all():
            same = other.diff_id == layer.diff_id and other.chain_id != layer.chain_id
            if same and not self._layer_problem(other):
                return other
        return None

    def _copy(self, source: LayerRecord, layer: LayerRecord) -> None:
        staged = self._layers.stage(IterReader(self._layers.open_tar(source)))
        try:
            self._layers.replace(layer, staged)
        finally:
            self._layers.discard(staged)

    # --- images and names -----------------------------------------------------------------------

    def _check_images(self) -> Iterator[Finding]:
        with self._database.transaction():
            images = {image.id: image for image in self._images.all()}
            tags = self._tags.all()
            layers = {layer.chain_id: layer for layer in self._layers.all()}
        for tag in tags:
            if tag.image not in images:
                yield self._found(
                    f"the name {tag.reference} means the image {short_id(tag.image)}, which is not "
                    "there",
                    partial(self._tags.delete, tag.reference),
                    "the name was removed; pull or load its image again",
                )
        for image in images.values():
            yield from self._check_image(image, images, layers)
        known = {layer.diff_id for layer in layers.values()}
        for diff_id in self._blobs.keys():  # noqa: SIM118  # a table, not a mapping
            if diff_id not in known:
                yield self._found(
                    f"the digests of the layer {short_id(diff_id)} in registries are noted, and it "
                    "is not there",
                    partial(self._blobs.delete, diff_id),
                    "the note was removed",
                )

    def _check_image(
        self,
        image: ImageRecord,
        images: Mapping[str, ImageRecord],
        layers: Mapping[str, LayerRecord],
    ) -> Iterator[Finding]:
        name = short_id(image.id)
        digest = hashlib.sha256(image.raw_config.encode()).hexdigest()
        try:
            chain = chain_ids(image.config.diff_ids)
        except errors.InvalidArgument:
            chain = []
            digest = ""
        if image.id != DIGEST_PREFIX + digest:
            yield self._found(
                f"the configuration of the image {name} is not what its ID says",
                lambda: self._forget(image),
                "the image was removed; pull or load it again",
            )
            return
        if image.parent and image.parent not in images:
            yield self._found(
                f"the image {name} names the parent {short_id(image.parent)}, which is not there",
                lambda: self._images.put(structs.replace(image, parent="")),
                "the parent's name was removed",
            )
        lacking = [chain_id for chain_id in chain if chain_id not in layers]
        if lacking:
            if self._images.get(image.id) is not None:
                yield self._found(
                    f"the image {name} lacks the layer {short_id(lacking[0])}", None, "",
                    f"pull or load {self._name_of(image)} again",
                )  # fmt: skip
            return
        size_bytes = sum(layers[chain_id].size_bytes for chain_id in chain)
        if size_bytes != image.size_bytes:
            yield self._found(
                f"the image {name} is noted with {image.size_bytes} bytes and has {size_bytes}",
                lambda: self._images.put(structs.replace(image, size_bytes=size_bytes)),
                "the number was corrected",
            )

    def _name_of(self, image: ImageRecord) -> str:
        tags = self._tags.find("image", image.id)
        return tags[0].reference if tags else "it"

    def _forget(self, image: ImageRecord) -> None:
        with self._database.transaction():
            for tag in self._tags.find("image", image.id):
                self._tags.delete(tag.reference)
            self._images.delete(image.id)

    # --- containers -----------------------------------------------------------------------------

    def _check_roots(self) -> Iterator[Finding]:
        roots = {root.container_id: root for root in self._roots.all()}
        known = self._containers.known()
        for root in roots.values():
            if root.container_id not in known:
                if self._roots.get(root.container_id) is not None:
                    yield self._found(
                        f"a root is noted for the container {root.container_id[:12]}, which is not "
                        "there",
                        partial(self._roots.delete, root.container_id),
                        "the note was removed",
                    )
            else:
                yield from self._check_root(root)
        for container_id in known:
            if container_id not in roots and self._is_still(container_id):
                yield self._found(
                    f"the container {container_id[:12]} has no root file system", None, "",
                    "remove the container and create it again",
                )  # fmt: skip

    def _is_still(self, container_id: str) -> bool:
        """Say whether a container is there now and has no root: one that was being made when the
        roots were read has one by now."""
        return container_id in self._containers.known() and not self._roots.has(container_id)

    def _check_root(self, root: RootRecord) -> Iterator[Finding]:
        name = root.container_id[:12]
        try:
            self._layers.chain(root.chain_id)
        except errors.DataLoss:
            yield self._found(
                f"the container {name} stands on a layer that is not there", None, "",
                f"pull or load its image {short_id(root.image)} again",
            )  # fmt: skip
        upper = Path(self._root.container_file(root.container_id, "upper"))
        if not upper.is_dir() and self._is_written(root.container_id):
            yield self._found(
                f"the container {name} lacks its directory {upper}",
                lambda: self._container_roots.restore(root.container_id),
                "an empty one was made; what it had written is lost",
            )

    def _is_written(self, container_id: str) -> bool:
        """Say whether a container should have a directory of its own, as things are now."""
        root = self._roots.get(container_id)
        return root is not None and root.written and container_id in self._containers.known()

    def _check_volumes(self) -> Iterator[Finding]:
        for name in self._volumes.without_directory():
            yield self._found(
                f"the volume {name} lacks its directory {self._volumes.mountpoint(name)}",
                partial(self._volumes.recover, name),
                "an empty one was made; what it held is lost",
            )
        used = self._containers.volume_uses()
        known = set(self._known_volumes())
        for container_id, names in used.items():
            for name in sorted(names - known):
                if container_id in self._containers.known():
                    yield self._found(
                        f"the container {container_id[:12]} has the volume {name}, which is not "
                        "there",
                        partial(self._volumes.recover, name),
                        "it was made again, of its files if they are there",
                    )
        # Files of people are never thrown away here: they are shown where they can be looked at.
        for name in self._volumes.without_record():
            yield self._found(
                f"the directory {Path(self._root.volumes, name)} belongs to no volume",
                partial(self._volumes.recover, name),
                f"it is the volume {name} again: look into it, or remove it with docker volume rm",
            )

    def _known_volumes(self) -> list[str]:
        return [row[0] for row in self._database.execute("SELECT id FROM volumes")]

    def _check_unused(self) -> Iterator[Finding]:
        unused = self._layers.unused()
        if unused:
            names = ", ".join(short_id(layer.chain_id) for layer in unused[:3])
            more = ", …" if len(unused) > 3 else ""
            yield self._found(
                f"{len(unused)} layers belong to no image and no container ({names}{more})",
                self._layers.release_unused, "they were removed",
            )  # fmt: skip


def _entries(directory: str) -> list[Path]:
    try:
        return sorted(Path(directory).iterdir())
    except FileNotFoundError:
        return []
