"""Writable roots of containers: an upper directory on the layers of an image.

Returns mounts and never performs them. ``roots`` in the database says which layers a container
stands on, so that these live as long as it does, whatever becomes of the image's names. A root has
directories from its first use on, and keeps the upper one if something was written there: what is
only created, or wrote nothing, takes nothing of the disk but its records.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import structs

from deskd import errors
from deskd.domain.id_mapping import NO_MAPPING, IdMapping
from deskd.domain.image import LayerRecord, RootRecord, chain_ids, short_id
from deskd.domain.mount import MountStep
from deskd.images.layers import LayerStore
from deskd.images.pack import END, IterReader, pack_layer
from deskd.images.streams import ByteReader
from deskd.layout import DataRoot
from deskd.storage.changes import Change, changes_between
from deskd.storage.mount_points import make_mount_points
from deskd.store import records
from deskd.store.database import Database

_OPTIONS = "index=off,metacopy=off,redirect_dir=off"
"""No feature that would tie an upper directory to one mount or hide files' places from diffs."""

_UPPER_MODE = 0o755
_OVERLAYS_OWN = "trusted.overlay."
_WHILE_RUNNING = ("hostname", "hosts", "resolv.conf")


class Snapshots:
    """Implements ``RootFilesystems``. Methods block for as long as some file system calls take,
    ``remove``, ``changes`` and ``size_bytes`` as long as the container has files.

    ``id_map`` is that of remapped roots: their layers are shown with mapped owners (idmapped
    mounts), what is written has the machine's IDs.
    """

    def __init__(
        self,
        root: DataRoot,
        database: Database,
        layers: LayerStore,
        id_map: IdMapping = NO_MAPPING,
    ) -> None:
        self._root = root
        self._database = database
        self._layers = layers
        self._images = records.images(database)
        self._roots = records.roots(database)
        self._id_map = id_map
        make_mount_points(root.mount_points)

    def create(
        self,
        container_id: str,
        image_id: str,
        *,
        volatile: bool = False,
        remapped: bool = False,
    ) -> None:
        """Note a container's root on the image ``image_id``; ``mounts`` makes its directories.

        ``volatile``: what is written need not survive a crash of the machine (containers that
        are removed when they end), which spares the disk every sync. Raises ``NotFound`` where
        the image is gone, and ``ResourceExhausted``.
        """
        self._database.check_room()
        with self._database.transaction():
            image = self._images.get(image_id)
            if image is None:
                raise errors.NotFound(f"No such image: {image_id}")
            top = (chain_ids(image.config.diff_ids) or [""])[-1]
            self._layers.chain(top)
            record = RootRecord(
                container_id=container_id,
                chain_id=top,
                image=image_id,
                volatile=volatile,
                remapped=remapped,
            )
            self._roots.put(record)

    def restore(self, container_id: str) -> None:
        """Make the directories of a root that are missing.

        Raises ``NotFound``, and ``DataLoss`` where a layer below it is missing.
        """
        record = self._record(container_id)
        self._make_directories(record, self._layers.chain(record.chain_id))

    def _make_directories(self, record: RootRecord, chain: Sequence[LayerRecord]) -> None:
        directory = Path(self._root.container(record.container_id))
        upper, work = Path(self.upper(record.container_id)), Path(self._work(record.container_id))
        try:
            directory.mkdir(mode=0o710, parents=True, exist_ok=True)
            if not upper.is_dir():
                upper.mkdir(mode=_UPPER_MODE)
                mode, uid, gid = self._root_attributes(record, chain)
                os.chown(upper, uid, gid)
                upper.chmod(mode)
            work.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise errors.SystemFailure(
                f"the root of container {record.container_id[:12]} cannot be made: {error}"
            ) from error
        if not record.written:
            self._roots.put(structs.replace(record, written=True))

    def _root_attributes(
        self, record: RootRecord, chain: Sequence[LayerRecord]
    ) -> tuple[int, int, int]:
        """Return mode and owner that the image's top layer gives to "/": in an overlay the upper
        directory's count."""
        id_map = self._id_map_of(record)
        if not chain:
            return _UPPER_MODE, *id_map.to_host(0, 0)
        found = Path(self._layers.directory(chain[0])).stat()
        return found.st_mode & 0o7777, *id_map.to_host(found.st_uid, found.st_gid)

    def put_away(self, container_id: str) -> None:
        """Free what a root needs only while it is mounted, and all of it where nothing was
        written; idempotent. Call it when nothing has the root mounted."""
        record = self._roots.get(container_id)
        if record is None:
            return
        for name in _WHILE_RUNNING:
            with suppress(FileNotFoundError):
                os.unlink(self._root.container_file(container_id, name))
        with suppress(FileNotFoundError):
            shutil.rmtree(self._work(container_id))
        upper = self.upper(container_id)
        if record.written and self._is_untouched(record, upper):
            # First: a record may say less than the disk, and never more.
            self._roots.put(structs.replace(record, written=False))
            with suppress(OSError):
                os.rmdir(upper)
        with suppress(OSError):  # mostly the log is there
            os.rmdir(self._root.container(container_id))

    def _is_untouched(self, record: RootRecord, upper: str) -> bool:
        try:
            found = os.stat(upper)
            attributes = [
                name for name in os.listxattr(upper) if not name.startswith(_OVERLAYS_OWN)
            ]
            if attributes or os.listdir(upper):
                return False
            expected = self._root_attributes(record, self._layers.chain(record.chain_id))
        except (OSError, errors.DataLoss):
            return False
        return (found.st_mode & 0o7777, found.st_uid, found.st_gid) == expected

    def mounts(self, container_id: str) -> tuple[MountStep, ...]:
        """Return the steps that build "/" of this container, and make the directories that they
        need; raises ``NotFound`` and ``ResourceExhausted``. ``put_away`` when nothing has them
        mounted any more."""
        self._database.check_room()
        record = self._record(container_id)
        upper, work = self.upper(container_id), self._work(container_id)
        chain = self._layers.chain(record.chain_id)
        self._make_directories(record, chain)
        lowers = [self._layers.relative_directory(layer) for layer in chain]
        lower = ":".join((*lowers, os.path.basename(self._root.mount_points)))
        data = f"lowerdir={lower},upperdir={_escape(upper)},workdir={_escape(work)},{_OPTIONS}"
        if record.volatile:
            # The kernel refuses to mount after an unclean end as long as this mark is there.
            with suppress(FileNotFoundError):
                shutil.rmtree(Path(work, "work", "incompat", "volatile"))
            data += ",volatile"
        id_map = self._id_map_of(record)
        return (
            MountStep(
                kind="overlay",
                target="/",
                source=self._root.layers,
                data=data,
                uid_map=id_map.uids,
                gid_map=id_map.gids,
            ),
        )

    def _id_map_of(self, record: RootRecord) -> IdMapping:
        return self._id_map if record.remapped else NO_MAPPING

    def upper(self, container_id: str) -> str:
        """Return the directory that holds the container's own changes."""
        return self._root.container_file(container_id, "upper")

    def _work(self, container_id: str) -> str:
        return self._root.container_file(container_id, "work")

    def lower_directories(self, container_id: str) -> list[str]:
        """Return the layers' directories below the container, top first."""
        chain = self._layers.chain(self._record(container_id).chain_id)
        return [*map(self._layers.directory, chain), self._root.mount_points]

    def remove(self, container_id: str) -> None:
        """Remove the root and the layers that nothing needs any more; idempotent."""
        for place in (self.upper(container_id), self._work(container_id)):
            self._layers.remove_tree(Path(place))
        record = self._roots.get(container_id)
        if record is None:
            return
        self._roots.delete(container_id)
        if self._images.get(record.image) is None:
            self._layers.release_unused()

    def sweep(self, containers: set[str]) -> None:
        """Remove the roots of containers that do not exist; call at start."""
        for container_id in self._roots.keys():  # noqa: SIM118  # a table, not a mapping
            if container_id not in containers:
                self.remove(container_id)
        with suppress(FileNotFoundError):
            for place in Path(self._root.containers).iterdir():
                if place.name not in containers:
                    shutil.rmtree(place)

    def changes(self, container_id: str) -> list[Change]:
        """Return what the container added, changed and deleted, as ``docker diff`` shows it."""
        id_map = self._id_map_of(self._record(container_id))
        lowers, upper = self.lower_directories(container_id), self.upper(container_id)
        return changes_between(upper, lowers, id_map) if os.path.isdir(upper) else []

    def layer_tar(self, container_id: str) -> ByteReader:
        """Return the container's changes as the tar of an image layer."""
        id_map = self._id_map_of(self._record(container_id))
        upper = self.upper(container_id)
        return IterReader(pack_layer(upper, id_map) if os.path.isdir(upper) else iter((END,)))

    def _record(self, container_id: str) -> RootRecord:
        record = self._roots.get(container_id)
        if record is None:
            raise errors.NotFound(f"the container {short_id(container_id)} has no root file system")
        return record


def _escape(path: str) -> str:
    """Escape what separates an overlay's options and directories."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
