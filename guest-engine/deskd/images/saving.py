"""Writes image archives as ``docker save`` does since Docker 25: an OCI image layout that has
Docker's ``manifest.json`` and ``repositories`` beside its ``index.json``.

The archive streams, so the documents that name the blobs come last. The same images give the same
bytes at every time: layers bear the time of the image that they were written for, documents none.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from deskd import errors
from deskd.domain import image as rules
from deskd.domain.image import ImageRecord, LayerRecord
from deskd.domain.manifest import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest_of
from deskd.domain.reference import Reference, parse
from deskd.images.catalog import Catalog
from deskd.images.filters import created_ns
from deskd.images.loading import NAME_ANNOTATION, REF_ANNOTATION
from deskd.record import Record

Sink = Callable[[bytes], None]


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
    try:
        reference = parse(name)
    except errors.InvalidArgument:
        reference = None  # an ID, or wrong
    if reference is not None and not reference.tag and not reference.digest:
        repository = [
            (other, catalog.get(image_id))
            for image_id, others in catalog.all_names().items()
            for other in others
            if other.name == reference.name and other.tag
        ]
        if repository:
            return [(record, other) for other, record in sorted(repository, key=_by_name)]
    found = catalog.find(name)
    if found is None:
        raise errors.NotFound(f"No such image: {name}")
    tagged = reference.with_default_tag() if reference else None
    is_tag = tagged is not None and tagged.tag and tagged in catalog.names(found.id)
    return [(found, tagged if is_tag else None)]


def _by_name(named: tuple[Reference, ImageRecord]) -> str:
    return str(named[0])


def save(catalog: Catalog, plan: SavePlan, sink: Sink) -> None:
    """Write the archive; from its first byte on a removal of the images leaves their layers.

    Raises ``NotFound`` and ``DataLoss`` before that.
    """
    chains = [rules.chain_ids(record.config.diff_ids) for record in plan.records]
    with catalog.layers.holding({chain_id for chain in chains for chain_id in chain}):
        for record in plan.records:
            catalog.layers.chain(_top(catalog.get(record.id)))
        writer = _Writer(catalog, plan, sink)
        for record, names in plan.images:
            writer.image(record, names)
        writer.finish()


class _Writer:
    """Writes each blob once and collects what the documents at the end say."""

    def __init__(self, catalog: Catalog, plan: SavePlan, sink: Sink) -> None:
        self._catalog = catalog
        self._saved = {record.id for record in plan.records}
        self._sink = sink
        self._written: set[str] = set()
        self._entries: list[dict[str, Any]] = []
        self._descriptors: list[dict[str, Any]] = []
        self._repositories: dict[str, dict[str, str]] = {}
        for name in ("blobs/", "blobs/sha256/"):
            sink(_header(name, kind=tarfile.DIRTYPE, mode=0o755))

    def image(self, record: ImageRecord, names: Sequence[Reference]) -> None:
        """Write what an image consists of, and note what names it."""
        created_s = max(0, created_ns(record) // 1_000_000_000)
        layers = list(reversed(self._catalog.layers.chain(_top(record))))
        for layer in layers:
            self._layer(layer, created_s)
        raw_config = record.raw_config.encode()
        manifest = msgspec.json.encode(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": _descriptor(OCI_CONFIG, record.id, len(raw_config)),
                "layers": [_layer_descriptor(layer) for layer in layers],
            }
        )
        manifest_id = digest_of(manifest)
        self._document(record.id, raw_config, created_s)
        self._document(manifest_id, manifest, created_s)
        descriptor = _descriptor(OCI_MANIFEST, manifest_id, len(manifest))
        self._descriptors += [
            {**descriptor, "annotations": {NAME_ANNOTATION: str(name), REF_ANNOTATION: name.tag}}
            for name in names
        ] or [descriptor]
        entry: dict[str, Any] = {
            "Config": _blob(record.id),
            "RepoTags": [name.familiar for name in names if name.tag] or None,
            "Layers": [_blob(layer.diff_id) for layer in layers],
        }
        if record.parent in self._saved:
            entry["Parent"] = record.parent
        if layers:
            entry["LayerSources"] = {layer.diff_id: _layer_descriptor(layer) for layer in layers}
            for name in names:
                tags = self._repositories.setdefault(name.familiar_name, {})
                tags[name.tag] = layers[-1].diff_id.partition(":")[2]
        self._entries.append(entry)

    def finish(self) -> None:
        """Write the documents and the end of the archive."""
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self._descriptors}
        self._file("index.json", msgspec.json.encode(index))
        self._file("manifest.json", msgspec.json.encode(self._entries))
        self._file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        if self._repositories:
            self._file("repositories", msgspec.json.encode(self._repositories))
        self._sink(bytes(2 * tarfile.BLOCKSIZE))

    def _layer(self, layer: LayerRecord, created_s: int) -> None:
        if layer.diff_id in self._written:
            return
        self._written.add(layer.diff_id)
        self._sink(_header(_blob(layer.diff_id), layer.tar_bytes, time_s=created_s))
        for chunk in self._catalog.layers.open_tar(layer):
            self._sink(chunk)
        self._sink(bytes(-layer.tar_bytes % tarfile.BLOCKSIZE))

    def _document(self, digest: str, data: bytes, created_s: int) -> None:
        if digest not in self._written:
            self._written.add(digest)
            self._file(_blob(digest), data, created_s)

    def _file(self, name: str, data: bytes, time_s: int = 0) -> None:
        self._sink(_header(name, len(data), time_s=time_s))
        self._sink(data + bytes(-len(data) % tarfile.BLOCKSIZE))


def _top(record: ImageRecord) -> str:
    return (rules.chain_ids(record.config.diff_ids) or [""])[-1]


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _layer_descriptor(layer: LayerRecord) -> dict[str, Any]:
    return _descriptor(OCI_LAYER, layer.diff_id, layer.tar_bytes)


def _header(
    name: str,
    size: int = 0,
    *,
    time_s: int = 0,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime, member.type = size, mode, time_s, kind
    return member.tobuf(tarfile.PAX_FORMAT)
