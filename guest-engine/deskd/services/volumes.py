"""Named and anonymous volumes of the driver ``local``: directories below the data root."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from deskd.domain.filters import Filters
from deskd.domain.times import rfc3339
from deskd.errors import Conflict, InvalidArgument, NotFound, SystemFailure, Unsupported
from deskd.layout import DataRoot
from deskd.services.events import Events
from deskd.store.database import Records

MAX_NAME_LENGTH = 255
_OPTIONS = ("device", "o", "type")
_BIND_TYPES = ("", "none", "bind")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_LIST_FILTERS = ("dangling", "driver", "label", "name")
_PRUNE_FILTERS = ("all", "label", "label!")
ANONYMOUS_LABEL = "com.docker.volume.anonymous"


class VolumeRecord(msgspec.Struct, kw_only=True, frozen=True):
    """A volume of the database."""

    name: str
    created_ns: int
    labels: dict[str, str] = {}
    options: dict[str, str] = {}

    @property
    def anonymous(self) -> bool:
        return ANONYMOUS_LABEL in self.labels

    @property
    def device(self) -> str:
        """The machine's directory that the volume stands for (``o=bind``), else ``""``."""
        return self.options.get("device", "")

    @property
    def read_only(self) -> bool:
        return "ro" in self.options.get("o", "").split(",")


class Volumes:
    """The volume service. ``users_of`` names the containers that have a volume mounted; ``owner``
    is the containers' root, to whom new volumes belong."""

    def __init__(
        self,
        records: Records[VolumeRecord],
        layout: DataRoot,
        events: Events,
        users_of: Callable[[str], list[str]],
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        self._records = records
        self._layout = layout
        self._events = events
        self._users_of = users_of
        self._owner = owner

    def mountpoint(self, name: str) -> str:
        """Return the directory that holds the volume's data."""
        return self._layout.volume_data(name)

    def create(
        self,
        name: str = "",
        *,
        driver: str = "",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> tuple[VolumeRecord, bool]:
        """Make a volume, or return the one of this name; the flag tells whether it is new.

        Raises ``InvalidArgument`` for a bad name or option, ``NotFound`` for an unknown driver
        and ``Unsupported`` for options that mount another file system.
        """
        if driver not in ("", "local"):
            raise NotFound(
                f'error looking up volume plugin {driver}: plugin "{driver}" not found; '
                "the only volume driver is local"
            )
        check_options(options or {})
        all_labels = dict(labels or {})
        if not name:
            name = secrets.token_hex(32)
            all_labels[ANONYMOUS_LABEL] = ""
        check_volume_name(name)
        present = self._records.get(name)
        if present is not None:
            return present, False
        record = VolumeRecord(
            name=name,
            created_ns=time.time_ns(),
            labels=all_labels,
            options=dict(options or {}),
        )
        with self._records.database.transaction():  # a check sees both, or neither
            self._make_directory(name)
            self._records.insert(record)
        self._events.publish("volume", "create", name, {"driver": "local"})
        return record, True

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
            "Labels": record.labels or None,
            "Mountpoint": self.mountpoint(record.name),
            "Name": record.name,
            "Options": record.options or None,
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
            and filters.allows_labels(record.labels)
            and (dangling is None or dangling is not bool(self._users_of(record.name)))
        ]

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Delete a volume. Raises ``NotFound`` (not with ``force``) and ``Conflict`` in use."""
        record = self._records.get(name)
        if record is None:
            if force:
                return
            raise NotFound(f"get {name}: no such volume")
        users = self._users_of(name)
        if users:
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        with self._records.database.transaction():
            self._records.delete(name)
            trash = self._put_aside(name)
        await asyncio.to_thread(shutil.rmtree, trash)
        self._events.publish("volume", "destroy", name, {"driver": "local"})

    def _put_aside(self, name: str) -> str:
        """Move a volume's directory to where the next start sweeps, so that a new volume of this
        name never shows the old one's files; return what is to be deleted."""
        place = os.path.dirname(self.mountpoint(name))
        trash = tempfile.mkdtemp(prefix="volume-", dir=self._layout.temporary)
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

    async def prune(self, filters: Filters, *, everything: bool = False) -> dict[str, Any]:
        """Delete unused volumes: anonymous ones; with ``everything`` or the filter ``all`` named
        ones too."""
        filters.check(_PRUNE_FILTERS)
        everything = everything or filters.flag("all")
        deleted: list[str] = []
        reclaimed = 0
        for record in self._records.all():
            if self._users_of(record.name) or not filters.allows_prune(record.labels):
                continue
            if record.anonymous or everything:
                size = await asyncio.to_thread(size_bytes, self.mountpoint(record.name))
                await self.remove(record.name)
                deleted.append(record.name)
                reclaimed += size
        attributes = {"reclaimed": str(reclaimed)}
        self._events.publish("volume", "prune", "", attributes)
        return {"VolumesDeleted": deleted or None, "SpaceReclaimed": reclaimed}

    async def disk_usage(self) -> list[dict[str, Any]]:
        """Return all volumes with their ``UsageData``."""
        rendered = []
        for record in self._records.all():
            volume = self.render(record)
            volume["UsageData"] = {
                "Size": await asyncio.to_thread(size_bytes, self.mountpoint(record.name)),
                "RefCount": len(self._users_of(record.name)),
            }
            rendered.append(volume)
        return rendered


def check_options(options: Mapping[str, str]) -> None:
    """Check the options of the driver ``local``: none, or those that make a volume stand for a
    directory of the machine (``type=none``, ``o=bind``, ``device=/path``).

    Raises ``InvalidArgument`` and ``Unsupported``.
    """
    for name in options:
        if name not in _OPTIONS:
            raise InvalidArgument(f'invalid option: "{name}"')
    if not options:
        return
    words = [word for word in options.get("o", "").split(",") if word]
    if not {"bind", "rbind"} & set(words) or options.get("type", "none") not in _BIND_TYPES:
        kind = options.get("type", "") or "none"
        raise Unsupported(
            f"the volume driver local mounts directories of the machine only (o=bind), not "
            f"type={kind} o={options.get('o', '')}; mount it on the machine and bind it"
        )
    for word in words:
        if word not in ("bind", "rbind", "ro", "rw"):
            raise InvalidArgument(f"invalid mount option {word!r} of a volume with o=bind")
    if not options.get("device", "").startswith("/"):
        raise InvalidArgument("missing device in volume options: give an absolute path")


def check_volume_name(name: str) -> None:
    """Raise ``InvalidArgument`` for a name that could not be a directory's."""
    if len(name) > MAX_NAME_LENGTH:
        raise InvalidArgument(
            f"create {name[:60]}…: a volume's name has at most {MAX_NAME_LENGTH} characters, this"
            f" one has {len(name)}"
        )
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, '
            "use absolute path"
        )


def size_bytes(path: str) -> int:
    """Sum the sizes of what is below ``path``, directories apart; each hard-linked file counts
    once, a symbolic link as many bytes as its target's name has (Docker's measure)."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for directory, subdirectories, names in os.walk(path):
        for name in (*subdirectories, *names):
            try:
                info = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(info.st_mode) and (info.st_dev, info.st_ino) not in seen:
                if info.st_nlink > 1:
                    seen.add((info.st_dev, info.st_ino))
                total += info.st_size
    return total
