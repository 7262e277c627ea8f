"""Loads image archives: those of ``docker save``, old and new, and OCI layouts.

Loading streams: every member that is a tar is unpacked as a staged layer while it passes, every
small JSON file is kept, and only at the end do the manifests say which layers belong to what. A
blob whose name is the digest of a layer that is here is only hashed.
Formats: Docker's image specification v1.2 (``manifest.json``), the OCI image layout, and what
Docker wrote before 1.10 (``deskd.images.first_format``).
"""

from __future__ import annotations

import hashlib
import posixpath
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from deskd import errors
from deskd.domain import image as rules
from deskd.domain.foreign_json import FOREIGN_JSON_ERRORS
from deskd.domain.image import ImageRecord
from deskd.domain.manifest import Descriptor, Manifest, parse_platform, suitable
from deskd.domain.reference import parse
from deskd.images.catalog import Catalog
from deskd.images.layers import StagedLayer
from deskd.images.progress import LayerProgress
from deskd.images.streams import CHUNK_BYTES, ByteReader, ForwardReader, decompressed, is_damage
from deskd.images.unpack import clean_name, members
from deskd.record import Record, field

T = TypeVar("T")
Progress = Callable[[dict[str, Any]], None]
_SMALLEST_TAR_BYTES = 1024
JSON_LIMIT_BYTES = 8 * 1024 * 1024
NAME_ANNOTATION = "io.containerd.image.name"
REF_ANNOTATION = "org.opencontainers.image.ref.name"


class ArchiveEntry(msgspec.Struct, frozen=True):
    """One image of ``manifest.json``."""

    Config: str
    Layers: list[str] | None = None
    RepoTags: list[str] | None = None
    Parent: str = ""


class Loaded(Record):
    """One loaded image, the names that the archive gave it, and the images that lost them."""

    record: ImageRecord
    names: list[str]
    renamed: dict[str, str]  # the former image's ID by name


class Wanted(Record):
    """One image of an archive: its configuration, its layers' members lowest first, its names."""

    raw_config: bytes
    layers: list[str]
    names: list[str]
    parent: str = ""


class _Contents(Record, frozen=False):
    """What an archive held, by member name."""

    documents: dict[str, bytes] = field(default_factory=dict)
    layers: dict[str, StagedLayer] = field(default_factory=dict)
    failures: dict[str, errors.DeskdError] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def resolve(self, name: str) -> str:
        seen: set[str] = set()
        while name in self.links and name not in seen:
            seen.add(name)
            name = self.links[name]
        return name

    def document(self, name: str) -> bytes:
        found = self.documents.get(self.resolve(name))
        if found is None:
            raise errors.InvalidArgument(
                f"the image archive names {name!r}, which is not in it: the archive is damaged"
            )
        return found


class _Part:
    """A reader of one member's content, hidden from the outer archive's bookkeeping."""

    line: LayerProgress | None = None
    """Where the reading is shown; may be set in its course."""

    def __init__(self, reader: ForwardReader, size: int) -> None:
        self._reader = reader
        self._size = self._left = size

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._reader.read_content(wanted)
        if wanted and not data:
            raise tarfile.ReadError("unexpected end of data")
        self._left -= len(data)
        if self.line and data:
            self.line.count("Loading layer", self._size - self._left)
        return data


# --- loading ------------------------------------------------------------------------------------


def load_file(catalog: Catalog, path: Path) -> list[Loaded]:
    """Load an archive file."""
    with path.open("rb") as file:
        return load(catalog, file, None)


def bundle_mark(path: Path) -> str:
    """Return what tells one version of a bundled archive from another."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def load(catalog: Catalog, source: ByteReader, progress: Progress | None) -> list[Loaded]:
    """Load all images of an archive, plain or compressed; on an error none is left behind.

    Raises ``InvalidArgument`` where the archive is damaged or none.
    """
    with ExitStack() as undo:
        contents = _Contents()
        try:
            _Reader(catalog, contents, undo, progress).read(decompressed(source))
        except tarfile.TarError as error:
            raise _damaged(str(error)) from error
        except Exception as error:
            if is_damage(error):
                raise _damaged(str(error)) from error
            raise
        wanted = _wanted_images(contents)
        with catalog.layers.recording():
            loaded = [_add(catalog, contents, image) for image in wanted]
            for image in wanted:
                _set_parent(catalog, rules.image_id(image.raw_config), image.parent)
            return loaded


def _wanted_images(contents: _Contents) -> list[Wanted]:
    if "manifest.json" in contents.documents:
        return _docker_images(contents)
    if "index.json" in contents.documents:
        return _layout_images(contents)
    if "repositories" in contents.documents:
        from deskd.images import first_format

        diff_ids = {name: staged.unpacked.diff_id for name, staged in contents.layers.items()}
        return [
            Wanted(image.raw_config, image.layers, image.names, image.parent)
            for image in first_format.images(contents.documents, diff_ids)
        ]
    raise errors.InvalidArgument(
        "the archive is not an image archive (it has neither manifest.json nor "
        "index.json): `docker import` makes an image of a root file system"
    )


def _damaged(detail: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"the image archive is damaged or not a tar archive ({detail}): make or fetch it again"
    )


class _Reader:
    """Takes an archive's members as they pass."""

    def __init__(
        self, catalog: Catalog, contents: _Contents, undo: ExitStack, progress: Progress | None
    ) -> None:
        self._layers = catalog.layers
        self._contents = contents
        self._undo = undo
        self._progress = progress
        self._known: dict[str, str] | None = None

    def read(self, source: ByteReader) -> None:
        """Take all members."""
        reader = ForwardReader(source, hashed=False)  # the archive's own digest is nothing
        for member in members(reader):
            name = clean_name(member.name)
            if member.issym():
                self._contents.links[name] = clean_name(
                    posixpath.join(posixpath.dirname(name), member.linkname)
                )
            elif member.islnk():
                self._contents.links[name] = clean_name(member.linkname)
            elif member.isreg() and member.size:
                self._file(reader, member.size, name)
        reader.drain()
        if self._contents.layers:
            self._layers.sync()

    def _file(self, reader: ForwardReader, size: int, name: str) -> None:
        diff_id = self._diff_id_here(name)
        part = _Part(reader, size)
        if diff_id:
            if _digest(part) != diff_id:
                self._contents.failures[name] = _damaged(f"{name} has another digest")
            return
        first = part.read(1)
        if first in b"{[" and size <= JSON_LIMIT_BYTES:
            rest = b"".join(iter(lambda: part.read(65536), b""))
            self._contents.documents[name] = first + rest
            return
        if self._progress and size >= _SMALLEST_TAR_BYTES:
            part.line = LayerProgress(self._progress, _label(name), size)
        try:
            staged = self._layers.stage(decompressed(_Rest(first, part)), synced=False)
        except errors.InvalidArgument as error:
            # Not a layer (VERSION and the like), or a damaged one: that counts only if it is
            # needed.
            self._contents.failures[name] = error
            return
        self._undo.callback(self._layers.discard, staged)
        self._contents.layers[name] = staged

    def _diff_id_here(self, name: str) -> str:
        """Return the digest that a blob's name claims where the store has a layer of it, which is
        kept until the archive is loaded; else nothing."""
        if not name.startswith("blobs/"):
            return ""
        if self._known is None:
            self._known = {record.diff_id: record.chain_id for record in self._layers.all()}
        diff_id = name.removeprefix("blobs/").replace("/", ":")
        chain_id = self._known.get(diff_id)
        if chain_id is None:
            return ""
        self._undo.enter_context(self._layers.holding([chain_id]))
        return diff_id if self._layers.get(chain_id) else ""


def _digest(part: ByteReader) -> str:
    digest = hashlib.sha256()
    while data := part.read(CHUNK_BYTES):
        digest.update(data)
    return f"sha256:{digest.hexdigest()}"


class _Rest:
    """A reader with its first byte put back."""

    def __init__(self, head: bytes, rest: ByteReader) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head
        return self._rest.read(size)


def _label(name: str) -> str:
    parts = name.split("/")
    return (parts[-2] if parts[-1] == "layer.tar" and len(parts) > 1 else parts[-1])[:12]


def _decode(raw: bytes, kind: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except FOREIGN_JSON_ERRORS as error:
        raise _damaged(f"{name}: {error}") from error


def _docker_images(contents: _Contents) -> list[Wanted]:
    entries = _decode(contents.documents["manifest.json"], list[ArchiveEntry], "manifest.json")
    return [
        Wanted(
            contents.document(clean_name(entry.Config)),
            [clean_name(layer) for layer in entry.Layers or []],
            entry.RepoTags or [],
            entry.Parent,
        )
        for entry in entries
    ]


def _blob(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return clean_name(f"blobs/{algorithm}/{value}")


def _layout_images(contents: _Contents) -> list[Wanted]:
    index = _decode(contents.documents["index.json"], Manifest, "index.json")
    wanted: list[Wanted] = []
    for descriptor in index.manifests or []:
        manifest = _choose(contents, descriptor)
        if manifest is None or manifest.config is None:
            continue
        notes = descriptor.annotations or {}
        name = notes.get(NAME_ANNOTATION) or notes.get(REF_ANNOTATION) or ""
        # A bare tag ("latest") says nothing about the repository, so it is no name.
        names = [name] if ":" in name or "/" in name else []
        layers = [_blob(layer.digest) for layer in manifest.layers or []]
        wanted.append(Wanted(contents.document(_blob(manifest.config.digest)), layers, names))
    if not wanted:
        raise errors.InvalidArgument(f"the image archive has no image for {parse_platform('')}")
    return wanted


def _choose(contents: _Contents, descriptor: Descriptor) -> Manifest | None:
    """Return the manifest for this machine behind a descriptor, or None."""
    name = contents.resolve(_blob(descriptor.digest))
    if name not in contents.documents:
        return None
    manifest = _decode(contents.documents[name], Manifest, name)
    if not manifest.manifests:
        return manifest
    # What an archive holds of an index may be less than the index names.
    for candidate in suitable(manifest.manifests, parse_platform("")):
        found = _choose(contents, candidate)
        if found is not None:
            return found
    return None


def _add(catalog: Catalog, contents: _Contents, wanted: Wanted) -> Loaded:
    config = rules.parse_config(wanted.raw_config, rules.image_id(wanted.raw_config))
    if len(wanted.layers) != len(config.diff_ids):
        raise errors.InvalidArgument(
            f"the image archive lists {len(wanted.layers)} layers where the image's configuration "
            f"has {len(config.diff_ids)}: the archive is damaged"
        )
    staged: list[StagedLayer] = []
    for name in wanted.layers:
        resolved = contents.resolve(name)
        if resolved in contents.failures:
            raise contents.failures[resolved]
        if resolved in contents.layers:
            staged.append(contents.layers[resolved])
    references = [parse(name).with_default_tag() for name in wanted.names]
    image_id = rules.image_id(wanted.raw_config)
    renamed = {
        reference.familiar: former.id
        for reference in references
        if (former := catalog.find(str(reference))) and former.id != image_id
    }
    with catalog.layers.copies(config.diff_ids, staged) as copies:
        record = catalog.add(wanted.raw_config, [*staged, *copies], references)
    return Loaded(record, [reference.familiar for reference in references], renamed)


def _set_parent(catalog: Catalog, image_id: str, parent_id: str) -> None:
    """Note what an image was made from, where that is here and the image stands on its layers."""
    image, parent = catalog.by_id(image_id), catalog.by_id(parent_id)
    if image is None or parent is None or image.parent:
        return
    above: ImageRecord | None = parent
    while above is not None:
        if above.id == image.id:
            return  # a circle, in which nothing could be removed any more
        above = catalog.by_id(above.parent)
    below = parent.config.diff_ids
    if image.config.diff_ids[: len(below)] == below:
        catalog.set_parent(image.id, parent.id)
