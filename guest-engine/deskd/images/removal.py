"""Removing images by Docker's rules: names first, then the image, then parents without names.

A running container and a dependent image forbid the removal; further names and a stopped
container do so unless it is forced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from deskd import errors
from deskd.domain.binned import Kind, new_entry
from deskd.domain.filters import Filters
from deskd.domain.image import DIGEST_PREFIX, BinnedImage, ImageRecord, chain_ids, short_id
from deskd.domain.reference import Reference, parse
from deskd.images import filters
from deskd.images.catalog import Catalog
from deskd.record import Record, field, replace
from deskd.store import records


class ImageUse(Record):
    """One container and the image that it stands on."""

    container_id: str
    image_id: str
    running: bool


Uses = Callable[[], Sequence[ImageUse]]
"""Who uses images now. It is asked inside the removal's transaction: a container that it does not
name yet finds its image gone, because its root is recorded in a transaction, too."""


class Step(Record):
    """One thing done, as the API reports it (``Untagged`` or ``Deleted``), with the labels that
    its event shows: those of an image that is still there."""

    report: dict[str, str]
    image_id: str
    labels: Mapping[str, str] = field(default_factory=dict)


class _Obstacle(Record):
    text: str
    hard: bool
    by_container: bool


class ImageConflict(errors.Conflict):
    """An image cannot be deleted; Docker's words."""

    def __init__(self, image_id: str, obstacle: _Obstacle) -> None:
        force = "cannot be forced" if obstacle.hard else "must be forced"
        super().__init__(
            f"conflict: unable to delete {short_id(image_id)} ({force}) - {obstacle.text}"
        )


class _Removal:
    """One removal: the catalog, who uses what, and what was done so far."""

    def __init__(self, catalog: Catalog, uses: Sequence[ImageUse]) -> None:
        self.catalog = catalog
        self.uses = uses
        self.done: list[Step] = []
        self.taken: dict[str, BinnedImage] = {}  # by the image's ID

    def users(self, image_id: str, *, running: bool | None = None) -> list[ImageUse]:
        return [
            use
            for use in self.uses
            if use.image_id == image_id and (running is None or use.running == running)
        ]

    def obstacle(
        self, image_id: str, *, soft: bool, ignore_names: bool = False
    ) -> _Obstacle | None:
        if self.catalog.children(image_id):
            return _Obstacle("image has dependent child images", hard=True, by_container=False)
        if running := self.users(image_id, running=True):
            text = f"image is being used by running container {running[0].container_id[:12]}"
            return _Obstacle(text, hard=True, by_container=True)
        if not soft:
            return None
        if not ignore_names and len(self.catalog.names(image_id)) > 1:
            text = "image is referenced in multiple repositories"
            return _Obstacle(text, hard=False, by_container=False)
        if stopped := self.users(image_id, running=False):
            text = f"image is being used by stopped container {stopped[0].container_id[:12]}"
            return _Obstacle(text, hard=False, by_container=True)
        return None

    def untag(self, names: Iterable[Reference], image_id: str) -> None:
        image = self.catalog.by_id(image_id)
        labels = (image.container_config.labels or {}) if image else {}
        for name in names:
            if self.catalog.untag(name):
                self._take(image_id, names=[str(name.with_default_tag())])
                report = {"Untagged": name.with_default_tag().familiar}
                self.done.append(Step(report, image_id, labels))

    def delete(self, image: ImageRecord, *, force: bool, prune: bool, quiet: bool) -> None:
        """Delete an image and, with ``prune``, its nameless unused parents.

        ``quiet``: where something holds the image, leave it without an error.
        """
        obstacle = self.obstacle(image.id, soft=not force)
        if obstacle:
            is_dangling = not self.catalog.names(image.id) and not self.catalog.children(image.id)
            if quiet and (obstacle.by_container or not is_dangling):
                return
            raise ImageConflict(image.id, obstacle)
        self.untag(self.catalog.names(image.id), image.id)
        self.catalog.delete(image.id)
        self._take(image.id, image=image)
        self.done.append(Step({"Deleted": image.id}, image.id))
        parent = self.catalog.by_id(image.parent) if image.parent else None
        if not prune or parent is None or self.catalog.names(parent.id):
            return
        if self.obstacle(parent.id, soft=True) is None:
            self.delete(parent, force=False, prune=True, quiet=True)

    def _take(
        self, image_id: str, *, names: Sequence[str] = (), image: ImageRecord | None = None
    ) -> None:
        known = self.taken.get(image_id, BinnedImage(id=image_id))
        self.taken[image_id] = BinnedImage(
            id=image_id, names=[*known.names, *names], image=image or known.image
        )

    def put_into_bin(self, group: str) -> None:
        """Keep what was taken, in the transaction that took it."""
        layers = self.catalog.layers
        binned = records.binned(self.catalog.database)
        freed = {layer.chain_id: layer.size_bytes for layer in layers.unused(with_bin=False)}
        for image in layers.binned_images():  # theirs are counted with them
            for chain_id in chain_ids(image.config.diff_ids):
                freed.pop(chain_id, None)
        for taken in self.taken.values():
            chain = chain_ids(taken.image.config.diff_ids) if taken.image else []
            own = [chain_id for chain_id in reversed(chain) if chain_id in freed]
            size_bytes = sum(freed.pop(chain_id) for chain_id in own)
            # To whoever asked they are as gone as the image.
            self.done += [Step({"Deleted": chain_id}, "") for chain_id in own]
            name = parse(taken.names[0]).familiar if taken.names else short_id(taken.id)
            binned.insert(new_entry(Kind.IMAGE, name, group, taken, size_bytes=size_bytes))

    def release_layers(self) -> int:
        """Remove the layers that are free now; return their bytes."""
        released = self.catalog.layers.release_unused()
        for layer in released:
            self.done.append(Step({"Deleted": layer.chain_id}, ""))
        return sum(layer.size_bytes for layer in released)


def remove(
    catalog: Catalog,
    uses: Uses,
    name: str,
    *,
    force: bool,
    prune_parents: bool,
    group: str = "",
) -> list[Step]:
    """Remove what ``name`` says, with a ``group`` into the bin; raises ``NotFound`` and
    ``Conflict``."""
    with catalog.database.transaction():
        removal = _Removal(catalog, uses())
        _remove_named(removal, name, force=force, prune_parents=prune_parents)
        if group:
            removal.put_into_bin(group)
    if any("Deleted" in step.report for step in removal.done):
        removal.release_layers()
    return removal.done


def _remove_named(removal: _Removal, name: str, *, force: bool, prune_parents: bool) -> None:
    image = removal.catalog.get(name)
    names = removal.catalog.names(image.id)
    quiet = False
    if not _is_id(name, image.id):
        reference = parse(name).with_default_tag()
        if reference.digest:
            reference = replace(reference, tag="")
        if not force and _is_single(names) and (users := removal.users(image.id)):
            raise errors.Conflict(
                f'conflict: unable to remove repository reference "{name}" (must force) - '
                f"container {users[0].container_id[:12]} is using its referenced image "
                f"{short_id(image.id)}"
            )
        removal.untag([reference], image.id)
        left = [name for name in removal.catalog.names(image.id) if name.name == reference.name]
        if reference.tag and not any(name.tag for name in left):
            # Digests without a tag of their repository would keep an image that nobody sees.
            removal.untag(left, image.id)
        if removal.catalog.names(image.id):
            return
        quiet = True
    elif _is_single(names):
        obstacle = removal.obstacle(image.id, soft=not force, ignore_names=True)
        if obstacle:
            raise ImageConflict(image.id, obstacle)
        removal.untag(names, image.id)
    removal.delete(image, force=force, prune=prune_parents, quiet=quiet)


def _is_id(name: str, image_id: str) -> bool:
    return image_id.removeprefix(DIGEST_PREFIX).startswith(name.removeprefix(DIGEST_PREFIX))


def _is_single(names: Sequence[Reference]) -> bool:
    """Say whether at most one tag names the image, within one repository."""
    if len(names) <= 1:
        return True
    repositories = {name.name for name in names}
    return len(repositories) == 1 and sum(1 for name in names if not name.digest) <= 1


def prune(catalog: Catalog, uses: Uses, wanted: Filters, group: str = "") -> tuple[list[Step], int]:
    """Remove unused images, with a ``group`` into the bin; return what was done and the bytes
    won."""
    dangling_only = wanted.flag("dangling", default=True)
    with catalog.database.transaction():
        removal = _Removal(catalog, uses())
        for image in filters.prunable(catalog, wanted):
            if catalog.by_id(image.id) is None:
                continue  # it went as the parent of an earlier one
            names = catalog.names(image.id)
            if removal.users(image.id) or (dangling_only and any(name.tag for name in names)):
                continue
            if removal.obstacle(image.id, soft=True, ignore_names=True) is None:
                removal.untag(names, image.id)
                removal.delete(image, force=False, prune=True, quiet=True)
        if group:
            removal.put_into_bin(group)
    return removal.done, removal.release_layers()
