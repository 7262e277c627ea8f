"""A data root with its stores, and tars to put in it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deskd.images.catalog import Catalog
from deskd.images.layers import LayerStore
from deskd.layout import DataRoot
from deskd.storage.snapshots import Snapshots
from deskd.store.database import Database


class Stores:
    """What ``compose`` makes of one data root."""

    def __init__(self, path: Path) -> None:
        self.root = DataRoot(str(path))
        self.database = Database.open(self.root.database)
        self.layers = LayerStore(self.root, self.database)
        self.catalog = Catalog(self.database, self.layers)
        self.snapshots = Snapshots(self.root, self.database, self.layers)

    def layer_directories(self) -> set[str]:
        """Return the names of the layers' directories, apart from the one that all stand on."""
        names = {place.name for place in Path(self.root.layers).iterdir()}
        return names - {Path(self.root.mount_points).name}

    def leftovers(self) -> list[str]:
        """Return what lies below ``tmp``, and layer directories without a record."""
        known = {str(layer.number) for layer in self.layers.all()}
        places = [str(place) for place in Path(self.root.temporary).iterdir()]
        return places + sorted(self.layer_directories() - known)


@contextmanager
def stores(path: Path) -> Iterator[Stores]:
    opened = Stores(path)
    try:
        yield opened
    finally:
        opened.database.close()


def entry(
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    target: str = "",
    owner: tuple[int, int] = (0, 0),
    mtime_s: int = 1_700_000_000,
    xattrs: Mapping[str, bytes] | None = None,
    device: tuple[int, int] = (0, 0),
    pax: Mapping[str, str] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    """Make one member for ``tar``."""
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.linkname = kind, mode, target
    member.uid, member.gid = owner
    member.mtime, member.size = mtime_s, len(data)
    member.devmajor, member.devminor = device
    member.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
        for key, value in (xattrs or {}).items()
    } | dict(pax or {})
    return member, data


def directory(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.SYMTYPE, target=target, mode=0o777)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind=tarfile.LNKTYPE, target=target)


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Make a PAX tar."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape"
    ) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
