"""Image archives: loading ``docker save`` archives and OCI layouts, and writing both in one.

Loading streams: every member that is a tar is unpacked as a staged layer while it passes, every
small JSON file is kept, and only at the end do the manifests say which layers belong to what.
Formats: Docker's image specification v1.2 (``manifest.json``) and the OCI image layout.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from deskd import errors
from deskd.domain import image as rules
from deskd.domain.image import ImageRecord
from deskd.domain.manifest import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    digest_of,
    parse_platform,
    suitable,
)
from deskd.domain.reference import Reference, parse
from deskd.images.catalog import Catalog
from deskd.images.layers import StagedLayer
from deskd.images.streams import ByteReader, ForwardReader, decompressed, is_damage
from deskd.images.unpack import clean_name, members
from deskd.record import Record, field

T = TypeVar("T")
Progress = Callable[[dict[str, Any]], None]
JSON_LIMIT_BYTES = 8 * 1024 * 1024
PROGRESS_STEP_BYTES = 1024 * 1024
_NAME_ANNOTATION = "io.containerd.image.name"
_REF_ANNOTATION = "org.opencontainers.image.ref.name"


class ArchiveEntry(msgspec.Struct, frozen=True):
    """One image of ``manifest.json``."""

    Config: str
    Layers: list[str] | None = None
    RepoTags: list[str] | None = None


class Loaded(Record):
    """One loaded image and the names that the archive gave it."""

    record: ImageRecord
    names: list[str]


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

    def __init__(self, reader: ForwardReader, size: int, on_bytes: Callable[[int], None]) -> None:
        self._reader = reader
        self._left = size
        self._on_bytes = on_bytes

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._reader.read_content(wanted)
        if wanted and not data:
            raise tarfile.ReadError("unexpected end of data")
        self._left -= len(data)
        self._on_bytes(len(data))
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
            _read_members(catalog, decompressed(source), contents, undo, progress)
        except tarfile.TarError as error:
            raise _damaged(str(error)) from error
        except Exception as error:
            if is_damage(error):
                raise _damaged(str(error)) from error
            raise
        if "manifest.json" in contents.documents:
            wanted = _docker_images(contents)
        elif "index.json" in contents.documents:
            wanted = _layout_images(contents)
        else:
            raise errors.InvalidArgument(
                "the archive is not an image archive (it has neither manifest.json nor "
                "index.json): `docker import` makes an image of a root file system"
            )
        with catalog.layers.recording():
            return [_add(catalog, contents, *image) for image in wanted]


def _damaged(detail: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        f"the image archive is damaged or not a tar archive ({detail}): make or fetch it again"
    )


def _read_members(
    catalog: Catalog,
    source: ByteReader,
    contents: _Contents,
    undo: ExitStack,
    progress: Progress | None,
) -> None:
    reader = ForwardReader(source)
    for member in members(reader):
        name = clean_name(member.name)
        if member.issym():
            contents.links[name] = clean_name(
                posixpath.join(posixpath.dirname(name), member.linkname)
            )
        elif member.islnk():
            contents.links[name] = clean_name(member.linkname)
        elif member.isreg() and member.size:
            _read_file(catalog, reader, member, name, contents, undo, progress)
    reader.drain()


def _read_file(
    catalog: Catalog,
    reader: ForwardReader,
    member: tarfile.TarInfo,
    name: str,
    contents: _Contents,
    undo: ExitStack,
    progress: Progress | None,
) -> None:
    part = _Part(reader, member.size, _teller(progress, _label(name), member.size))
    first = part.read(1)
    if first in b"{[" and member.size <= JSON_LIMIT_BYTES:
        contents.documents[name] = first + b"".join(iter(lambda: part.read(65536), b""))
        return
    try:
        staged = catalog.layers.stage(decompressed(_Rest(first, part)))
    except errors.InvalidArgument as error:
        # Not a layer (VERSION and the like), or a damaged one: that counts only if it is needed.
        contents.failures[name] = error
        return
    undo.callback(catalog.layers.discard, staged)
    contents.layers[name] = staged


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


def _teller(progress: Progress | None, label: str, total: int) -> Callable[[int], None]:
    """Return a counter that reports Docker's ``Loading layer`` now and then."""
    done = told = 0

    def count(size: int) -> None:
        nonlocal done, told
        if not size:
            return
        done += size
        if (
            progress
            and total >= PROGRESS_STEP_BYTES
            and (done - told >= PROGRESS_STEP_BYTES or done == total)
        ):
            told = done
            progress(
                {
                    "status": "Loading layer",
                    "id": label,
                    "progressDetail": {"current": done, "total": total},
                }
            )

    return count


def _decode(raw: bytes, kind: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise _damaged(f"{name}: {error}") from error


_Wanted = tuple[bytes, list[str], list[str]]  # configuration, layer members, names


def _docker_images(contents: _Contents) -> list[_Wanted]:
    entries = _decode(contents.documents["manifest.json"], list[ArchiveEntry], "manifest.json")
    return [
        (
            contents.document(clean_name(entry.Config)),
            [clean_name(layer) for layer in entry.Layers or []],
            entry.RepoTags or [],
        )
        for entry in entries
    ]


def _blob(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return clean_name(f"blobs/{algorithm}/{value}")


def _layout_images(contents: _Contents) -> list[_Wanted]:
    index = _decode(contents.documents["index.json"], Manifest, "index.json")
    wanted: list[_Wanted] = []
    for descriptor in index.manifests or []:
        manifest = _choose(contents, descriptor)
        if manifest is None or manifest.config is None:
            continue
        notes = descriptor.annotations or {}
        name = notes.get(_NAME_ANNOTATION) or notes.get(_REF_ANNOTATION) or ""
        # A bare tag ("latest") says nothing about the repository, so it is no name.
        names = [name] if ":" in name or "/" in name else []
        layers = [_blob(layer.digest) for layer in manifest.layers or []]
        wanted.append((contents.document(_blob(manifest.config.digest)), layers, names))
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


def _add(
    catalog: Catalog, contents: _Contents, raw_config: bytes, layers: list[str], names: list[str]
) -> Loaded:
    config = rules.parse_config(raw_config, rules.short_id(rules.image_id(raw_config)))
    if len(layers) != len(config.diff_ids):
        raise errors.InvalidArgument(
            f"the image archive lists {len(layers)} layers where the image's configuration has "
            f"{len(config.diff_ids)}: the archive is damaged"
        )
    staged: list[StagedLayer] = []
    for name in layers:
        resolved = contents.resolve(name)
        if resolved in contents.failures:
            raise contents.failures[resolved]
        if resolved in contents.layers:
            staged.append(contents.layers[resolved])
    references = [parse(name).with_default_tag() for name in names]
    with catalog.layers.copies(config.diff_ids, staged) as copies:
        record = catalog.add(raw_config, [*staged, *copies], references)
    return Loaded(record, [reference.familiar for reference in references])


# --- saving -------------------------------------------------------------------------------------


class SavePlan(Record):
    """The images to save, each with the names to write."""

    images: list[tuple[ImageRecord, list[Reference]]]

    @property
    def records(self) -> list[ImageRecord]:
        return [record for record, _ in self.images]


def plan_save(catalog: Catalog, names: Sequence[str]) -> SavePlan:
    """Find what the names mean: a tag, all tags of a repository, or an ID without a name.

    Raises ``NotFound`` and, without any name, ``InvalidArgument``.
    """
    if not names:
        raise errors.InvalidArgument("name at least one image to save")
    images: dict[str, tuple[ImageRecord, list[Reference]]] = {}
    for name in names:
        for record, reference in _named(catalog, name):
            _, references = images.setdefault(record.id, (record, []))
            if reference is not None and reference not in references:
                references.append(reference)
    return SavePlan(list(images.values()))


def _named(catalog: Catalog, name: str) -> list[tuple[ImageRecord, Reference | None]]:
    found = catalog.find(name)
    try:
        reference = parse(name)
    except errors.InvalidArgument:
        reference = None  # an ID
    if reference is not None and not reference.tag and not reference.digest:
        repository = [
            (catalog.get(image_id), other)
            for image_id, others in catalog.all_names().items()
            for other in others
            if other.name == reference.name and other.tag
        ]
        if repository:
            return [(record, other) for record, other in repository]
    if found is None:
        raise catalog.missing(name)
    is_name = reference is not None and reference.with_default_tag() in catalog.names(found.id)
    return [(found, reference.with_default_tag() if reference and is_name else None)]


def save(catalog: Catalog, plan: SavePlan, sink: Callable[[bytes], None]) -> None:
    """Write the archive: an OCI layout with Docker's ``manifest.json`` in it."""
    written: set[str] = set()
    entries: list[dict[str, Any]] = []
    descriptors: list[dict[str, Any]] = []
    for record, names in plan.images:
        layers = list(reversed(catalog.layers.chain(_top(record))))
        for layer in layers:
            if layer.diff_id not in written:
                written.add(layer.diff_id)
                sink(_header(_blob(layer.diff_id), layer.tar_bytes))
                for chunk in catalog.layers.open_tar(layer):
                    sink(chunk)
                sink(_padding(layer.tar_bytes))
        raw_config = record.raw_config.encode()
        manifest = msgspec.json.encode(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": _descriptor(OCI_CONFIG, record.id, len(raw_config)),
                "layers": [
                    _descriptor(OCI_LAYER, layer.diff_id, layer.tar_bytes) for layer in layers
                ],
            }
        )
        manifest_id = digest_of(manifest)
        for digest, data in ((record.id, raw_config), (manifest_id, manifest)):
            if digest not in written:
                written.add(digest)
                _write(sink, _blob(digest), data)
        descriptor = _descriptor(OCI_MANIFEST, manifest_id, len(manifest))
        descriptors += [
            {**descriptor, "annotations": {_NAME_ANNOTATION: str(name), _REF_ANNOTATION: name.tag}}
            for name in names
        ] or [descriptor]
        entries.append(
            {
                "Config": _blob(record.id),
                "RepoTags": [name.familiar for name in names] or None,
                "Layers": [_blob(layer.diff_id) for layer in layers],
            }
        )
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}
    _write(sink, "index.json", msgspec.json.encode(index))
    _write(sink, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    _write(sink, "manifest.json", msgspec.json.encode(entries))
    sink(bytes(2 * tarfile.BLOCKSIZE))


def _top(record: ImageRecord) -> str:
    return (rules.chain_ids(record.config.diff_ids) or [""])[-1]


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _write(sink: Callable[[bytes], None], name: str, data: bytes) -> None:
    sink(_header(name, len(data)) + data + _padding(len(data)))
