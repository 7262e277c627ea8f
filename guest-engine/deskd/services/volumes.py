"""Named and anonymous volumes of the driver ``local``: directories below the data root."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from deskd.domain.binned import BinRecord
from deskd.domain.filters import Filters
from deskd.domain.state import MountPoint
from deskd.domain.times import rfc3339
from deskd.domain.volume import ANONYMOUS_LABEL, VolumeRecord
from deskd.domain.volume_options import check_options
from deskd.errors import Conflict, DeskdError, InvalidArgument, NotFound, SystemFailure
from deskd.kernel import mount_table
from deskd.kernel.files import sync_directory
from deskd.layout import BIN_PREFIX, DataRoot
from deskd.services.events import Events
from deskd.services.volume_bin import VolumeBin
from deskd.services.volume_mounts import VolumeMounts
from deskd.storage.sizes import size_bytes
from deskd.store.database import Records

log = logging.getLogger(__name__)

MAX_NAME_LENGTH = 255
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_LIST_FILTERS = ("dangling", "driver", "label", "name")
_PRUNE_FILTERS = ("all", "label", "label!")
UNFINISHED_PREFIX = "fill-"
"""Beside ``_data``: a volume's first content, before it is complete."""


class Volumes:
    """The volume service. ``users_of`` names the containers that have a volume among their mounts;
    ``owner`` is the containers' root, to whom new volumes belong.

    A container that is being created is no container yet: it claims its volumes (``create``,
    ``claim``) until ``settle_claims`` or ``abandon``. One that runs holds them (``hold``,
    ``release``).
    """

    def __init__(
        self,
        records: Records[VolumeRecord],
        layout: DataRoot,
        events: Events,
        users_of: Callable[[str], list[str]],
        mounts: VolumeMounts,
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        self._records = records
        self._layout = layout
        self._events = events
        self._users_of = users_of
        self._mounts = mounts
        self._owner = owner
        self._binned = VolumeBin(records, layout)
        self._claims: dict[str, set[str]] = {}
        self._made_for: dict[str, list[str]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def mountpoint(self, name: str) -> str:
        """Return the directory that holds the volume's data."""
        return self._layout.volume_data(name)

    def _alone(self, name: str) -> asyncio.Lock:
        """Return what keeps a volume from being made, mounted and removed at the same time."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    # --- making ---------------------------------------------------------------------------------

    async def create(
        self,
        name: str = "",
        *,
        driver: str = "",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        claimant: str = "",
    ) -> VolumeRecord:
        """Make a volume, or return the one of this name; ``claimant`` is a container to be.

        Raises ``InvalidArgument`` for a bad name or option and ``NotFound`` for an unknown driver.
        """
        if driver not in ("", "local"):
            raise NotFound(
                f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not '
                "found; the only volume driver is local"
            )
        wanted = None if labels is None else dict(labels)
        anonymous = not name
        if anonymous:
            name = secrets.token_hex(32)
            wanted = {**(wanted or {}), ANONYMOUS_LABEL: ""}
        check_volume_name(name)
        async with self._alone(name):
            record = self._records.get(name)
            if record is None:
                record = self._make(name, wanted, options)
                await asyncio.to_thread(self._sync_directory, name)
                if claimant and anonymous:
                    self._made_for.setdefault(claimant, []).append(name)
            if claimant:
                self.claim(name, claimant)
        return record

    def _make(
        self, name: str, labels: dict[str, str] | None, options: Mapping[str, str] | None
    ) -> VolumeRecord:
        check_options(name, options or {})
        self._records.database.check_room()
        record = VolumeRecord(
            name=name,
            created_ns=time.time_ns(),
            labels=labels,
            options=None if options is None else dict(options),
        )
        with self._records.database.transaction():  # a check sees both, or neither
            self._make_directory(name)
            self._records.insert(record)
        self._events.publish("volume", "create", name, {"driver": "local"})
        return record

    def _make_directory(self, name: str) -> None:
        path = self.mountpoint(name)
        try:
            os.makedirs(path, mode=0o755, exist_ok=True)
            os.chmod(os.path.dirname(path), 0o701)
            if self._owner != (0, 0):
                os.chown(path, *self._owner)
        except OSError as error:
            raise SystemFailure(
                f"the volume {name} cannot be made in {path}: {error.strerror}"
            ) from error

    def _sync_directory(self, name: str) -> None:
        """Bring a new directory to the disk, as its record will be when the client is answered."""
        for directory in (os.path.dirname(self.mountpoint(name)), self._layout.volumes):
            sync_directory(directory)

    def claim(self, name: str, claimant: str) -> None:
        """Keep a volume from being removed while a container is created."""
        self._claims.setdefault(claimant, set()).add(name)

    def is_claimed_alone(self, name: str, claimant: str) -> bool:
        """Say whether nothing but this container to be can have a volume's directory open."""
        return self._users(name) == [claimant]

    def settle_claims(self, claimant: str) -> None:
        """End the claims of a container, which there is now; idempotent."""
        self._claims.pop(claimant, None)
        self._made_for.pop(claimant, None)

    async def abandon(self, claimant: str) -> None:
        """End the claims of a container that could not be created, and remove the anonymous
        volumes that were made for it."""
        made = self._made_for.get(claimant, [])
        self.settle_claims(claimant)
        for name in made:
            try:
                await self.remove(name, force=True)
            except DeskdError:
                log.exception("the volume %s of no container cannot be removed now", name)

    def _users(self, name: str) -> list[str]:
        claimants = [key for key, names in self._claims.items() if name in names]
        return [*self._users_of(name), *claimants]

    # --- looking --------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        return self._records.has(name)

    def get(self, name: str) -> VolumeRecord:
        """Return a volume. Raises ``NotFound``."""
        record = self._records.get(name)
        if record is None:
            raise NotFound(f"get {name}: no such volume")
        return record

    def render(self, record: VolumeRecord) -> dict[str, Any]:
        """Return the API's ``Volume``."""
        return {
            "CreatedAt": rfc3339(record.created_ns // 10**9 * 10**9),
            "Driver": "local",
            "Labels": record.labels,
            "Mountpoint": self.mountpoint(record.name),
            "Name": record.name,
            "Options": record.options,
            "Scope": "local",
        }

    def select(self, filters: Filters) -> list[dict[str, Any]]:
        """Return matching volumes. Raises ``InvalidArgument`` for an unknown filter."""
        filters.check(_LIST_FILTERS)
        dangling = filters.flag("dangling") if filters.get("dangling") else None
        return [
            self.render(record)
            for record in self._records.all()
            if filters.allows("driver", "local")
            and filters.allows_pattern("name", record.name)
            and filters.allows_labels(record.labels or {})
            and (dangling is None or dangling is not bool(self._users(record.name)))
        ]

    async def disk_usage(self) -> list[dict[str, Any]]:
        """Return the volumes on this disk with their ``UsageData``: those without options."""
        rendered = []
        for record in self._records.all():
            if record.options:
                continue
            volume = self.render(record)
            volume["UsageData"] = {
                "Size": await asyncio.to_thread(size_bytes, self.mountpoint(record.name)),
                "RefCount": len(self._users(record.name)),
            }
            rendered.append(volume)
        return rendered

    # --- removing -------------------------------------------------------------------------------

    async def remove(self, name: str, *, force: bool = False, group: str = "") -> None:
        """Delete a volume, or with a ``group`` move it into the bin. Raises ``NotFound`` (not with
        ``force``) and ``Conflict`` in use."""
        await asyncio.shield(self._remove(name, force=force, group=group))

    async def _remove(self, name: str, *, force: bool, group: str) -> None:
        async with self._alone(name):
            record = self._records.get(name)
            if record is None:
                if force:
                    return
                raise NotFound(f"get {name}: no such volume")
            users = self._users(name)
            if users:
                raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
            await self._free_of_mounts(name)
            if group:
                await self._binned.take(record, group)
            else:
                await self._delete(record)
        self._events.publish("volume", "destroy", name, {"driver": "local"})

    async def put_back(self, entry: BinRecord) -> None:
        """Bring a volume back from the bin. Raises ``Conflict`` where its name is taken."""
        async with self._alone(entry.name):
            if self._records.has(entry.name):
                raise Conflict(
                    f"there is a volume {entry.name} now: remove or copy it, then bring this one"
                    " back"
                )
            await asyncio.to_thread(self._binned.put_back, entry)
        self._events.publish("volume", "create", entry.name, {"driver": "local"})

    async def _free_of_mounts(self, name: str) -> None:
        """Unmount what the engine mounted. What else is mounted there is never removed."""
        await self._mounts.unmount(name)
        directory = os.path.dirname(self.mountpoint(name))
        if mounted := mount_table.below(directory):
            raise Conflict(f"remove {name}: something is mounted at {mounted[0]}; unmount it first")

    async def _delete(self, record: VolumeRecord) -> None:
        """Delete record and files."""
        name = record.name
        self._records.put(msgspec.structs.replace(record, removing=True))
        try:
            with self._records.database.transaction():
                self._records.delete(name)
                trash = self._put_aside(name)
        except SystemFailure:
            self._records.put(record)
            raise
        try:
            await asyncio.to_thread(shutil.rmtree, trash)
        except OSError as error:
            raise SystemFailure(
                f"the volume {name} is gone, but {error.filename or trash} of it cannot be deleted:"
                f" {error.strerror}"
            ) from error

    def _put_aside(self, name: str) -> str:
        """Move a volume's directory to where the next start sweeps, so that a new volume of this
        name never shows the old one's files; return what is to be deleted."""
        place = os.path.dirname(self.mountpoint(name))
        trash = self._records.database.with_room(
            lambda: tempfile.mkdtemp(prefix="volume-", dir=self._layout.temporary)
        )
        try:
            os.rename(place, os.path.join(trash, "data"))
        except FileNotFoundError:
            return trash
        except OSError as error:
            os.rmdir(trash)
            if error.errno != errno.EXDEV:  # the volumes have a disk of their own
                raise SystemFailure(f"the volume {name} cannot be removed: {error}") from error
            return place
        return trash

    # --- the check ------------------------------------------------------------------------------

    def without_directory(self) -> list[str]:
        """Return the names of volumes whose files are gone. From any thread, like those below."""
        with self._records.database.transaction():
            return [
                record.name
                for record in self._records.all()
                if not os.path.isdir(self.mountpoint(record.name))
            ]

    def without_record(self) -> list[str]:
        """Return the names of the directories that belong to no volume."""
        with self._records.database.transaction():
            found = set(os.listdir(self._layout.volumes)) if self._has_directory() else set()
            found = {name for name in found if not name.startswith(BIN_PREFIX)}
            return sorted(found - set(self._records.keys()))

    def _has_directory(self) -> bool:
        return os.path.isdir(self._layout.volumes)

    def recover(self, name: str) -> None:
        """Make what is missing of a volume, its directory or its record. Raises
        ``InvalidArgument`` for a name that no volume can have."""
        check_volume_name(name)
        with self._records.database.transaction():
            self._make_directory(name)
            if not self._records.has(name):
                self._records.insert(VolumeRecord(name=name, created_ns=time.time_ns()))

    async def prune(
        self, filters: Filters, *, everything: bool = False, group: str = ""
    ) -> dict[str, Any]:
        """Delete unused volumes, with a ``group`` into the bin: anonymous ones; with ``everything``
        or the filter ``all`` named ones too. Those with options are more than their directory, and
        stay."""
        filters.check(_PRUNE_FILTERS)
        everything = everything or filters.flag("all")
        deleted: list[str] = []
        reclaimed = 0
        for record in self._records.all():
            if record.options or not filters.allows_prune(record.labels or {}):
                continue
            if self._users(record.name) or not (record.anonymous or everything):
                continue
            size = 0  # nothing is got back from the bin
            if not group:
                size = await asyncio.to_thread(size_bytes, self.mountpoint(record.name))
            try:
                await self.remove(record.name, group=group)
            except (Conflict, NotFound):
                continue  # somebody took or removed it meanwhile
            deleted.append(record.name)
            reclaimed += size
        attributes = {"reclaimed": str(reclaimed)}
        self._events.publish("volume", "prune", "", attributes)
        return {"VolumesDeleted": deleted or None, "SpaceReclaimed": reclaimed}

    # --- use ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def held(self, points: Iterable[MountPoint], holder: str) -> AsyncIterator[None]:
        """Have the volumes among ``points`` mounted for a while."""
        wanted = list(points)
        try:
            await self.hold(wanted, holder)
            yield
        finally:
            await self.release(wanted, holder)

    async def hold(self, points: Iterable[MountPoint], holder: str) -> None:
        """Mount those volumes among ``points`` that have options, where nobody did so before.

        Raises ``NotFound`` for one that is gone, ``SystemFailure`` and ``Unsupported`` for one
        that cannot be mounted; ``release`` what was held until then.
        """
        for name in _volume_names(points):
            async with self._alone(name):
                record = self.get(name)
                if record.needs_mount:
                    await self._mounts.hold(name, record.options or {}, holder)

    async def release(self, points: Iterable[MountPoint], holder: str) -> None:
        """End what ``hold`` began; what nobody holds any more is unmounted. Idempotent."""
        for name in _volume_names(points):
            if self._mounts.is_held(name, holder):
                async with self._alone(name):
                    await self._mounts.release(name, holder)

    # --- the engine's start ---------------------------------------------------------------------

    async def restore(self, holders: Mapping[str, set[str]]) -> None:
        """Bring records, files and mounts together after an engine that may have been killed.
        ``holders`` are the running containers by volume. Call once, before any other."""
        await asyncio.to_thread(self._binned.restore)
        await asyncio.to_thread(self._remove_begun)
        for record in self._records.all():
            directory = os.path.dirname(self.mountpoint(record.name))
            try:
                if record.needs_mount:
                    await self._mounts.restore(record.name, holders.get(record.name, set()))
                if record.removing:
                    await self._free_of_mounts(record.name)
                    await self._delete(record)
                else:
                    await asyncio.to_thread(_delete_unfinished, directory)
            except (OSError, DeskdError) as error:
                log.warning("the volume %s is not as it should be: %s", record.name, error)

    def _remove_begun(self) -> None:
        """Remove what is left of volumes whose making was broken off: directories without a record
        and without a file. With files they are somebody's, and the check shows them."""
        for name in self.without_record():
            place = self.mountpoint(name)
            for directory in (place, os.path.dirname(place)):
                with contextlib.suppress(OSError):  # there is none, or it is not empty
                    os.rmdir(directory)


def _volume_names(points: Iterable[MountPoint]) -> list[str]:
    """Return each volume once, in an order that is everybody's."""
    return sorted({point.name for point in points if point.type == "volume"})


def _delete_unfinished(directory: str) -> None:
    """Delete what a copy of an image's content left that did not come to its end."""
    for name in os.listdir(directory):
        if name.startswith(UNFINISHED_PREFIX):
            shutil.rmtree(os.path.join(directory, name), ignore_errors=True)


def check_volume_name(name: str) -> None:
    """Raise ``InvalidArgument`` for a name that could not be a directory's."""
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidArgument(
            f"create {name[:60]}…: a volume's name has at most {MAX_NAME_LENGTH} characters, this"
            f" one has {len(name)}"
        )
    if len(name) == 1:
        raise InvalidArgument(
            f"create {name}: volume name is too short, names should be at least two alphanumeric "
            "characters"
        )
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, '
            "use absolute path"
        )
