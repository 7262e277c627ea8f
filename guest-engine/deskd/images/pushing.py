"""Pushing images: the layers that a registry lacks, then configuration and manifest.

A layer is made again from its recipe and compressed while it is sent. Which digest its compressed
form had, and which repositories hold it, is remembered: what is there is not sent again, and what
another repository of the same registry has is mounted from it.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TypeVar

import msgspec
from isal import isal_zlib

from deskd import errors
from deskd.domain import image as rules
from deskd.domain.image import ImageRecord, KnownBlob, LayerRecord
from deskd.domain.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    Platform,
    digest_of,
    suitable,
)
from deskd.domain.reference import Reference
from deskd.images.catalog import Catalog
from deskd.images.connecting import Registries, with_repository
from deskd.images.progress import LayerProgress, Tell
from deskd.images.upload_resumption import resume
from deskd.record import Record, replace
from deskd.registry.blobs import ATTEMPTS, FIRST_DELAY_S, MAXIMUM_DELAY_S
from deskd.registry.failures import Broken, RegistryError, Unreachable
from deskd.registry.repository import Repository, is_stream_refusal

T = TypeVar("T")
PARALLEL_LAYERS = 4
COMPRESSION_LEVEL = 2
PIECE_BYTES = 256 * 1024
_GZIP = 31  # window bits that mean gzip's header and trailer (zlib's manual, deflateInit2)


class Pushed(Record):
    """One tag that was pushed, and its manifest."""

    reference: Reference
    record: ImageRecord
    digest: str


def push(
    catalog: Catalog,
    registries: Registries,
    reference: Reference,
    tell: Tell,
    platform: Platform | None = None,
) -> list[Pushed]:
    """Send one tag, or with a name alone every tag of it, to the registry that the name says.

    Raises ``NotFound`` with Docker's words where there is no such image here, or one of another
    ``platform`` than was asked for.
    """
    tell({"status": f"The push refers to repository [{reference.name}]"})
    wanted = _wanted(catalog, reference)
    for name, record in wanted:
        config = record.config
        own = Platform(config.architecture, config.os, config.variant)
        if platform is not None and not suitable([Descriptor("", platform=own)], platform):
            raise errors.NotFound(
                f"image with reference {name.familiar} was found but its platform ({own}) does "
                f"not match the specified platform ({platform})"
            )

    def work(repository: Repository) -> list[Pushed]:
        pushed = []
        for name, record in wanted:
            chain = rules.chain_ids(record.config.diff_ids)
            with catalog.layers.holding(chain):
                pushed.append(_Push(catalog, repository, name, record, tell).run())
        return pushed

    return with_repository(registries, reference, work, writing=True)


def _wanted(catalog: Catalog, reference: Reference) -> list[tuple[Reference, ImageRecord]]:
    if reference.digest:
        raise errors.InvalidArgument("cannot push a digest reference")
    own = [
        (name, catalog.get(image_id))
        for image_id, names in catalog.all_names().items()
        for name in names
        if name.name == reference.name and name.tag
    ]
    if not own:
        raise errors.NotFound(
            f"An image does not exist locally with the tag: {reference.familiar_name}"
        )
    found = [entry for entry in own if not reference.tag or entry[0].tag == reference.tag]
    if not found:
        raise errors.NotFound(f"tag does not exist: {reference.familiar}")
    return sorted(found, key=lambda entry: entry[0].tag)


class _Push:
    """One image on its way to one tag."""

    def __init__(
        self,
        catalog: Catalog,
        repository: Repository,
        reference: Reference,
        record: ImageRecord,
        tell: Tell,
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._reference = reference
        self._record = record
        self._tell = tell
        self._place = reference.name
        self._failed = threading.Event()
        self._takes_streams = True

    def run(self) -> Pushed:
        chain = rules.chain_ids(self._record.config.diff_ids)
        layers = list(reversed(self._catalog.layers.chain(chain[-1] if chain else "")))
        blobs = self._send_layers(layers)
        raw_config = self._record.raw_config.encode()
        self._send_small(self._record.id, raw_config)
        media_type, raw = self._manifest(blobs, len(raw_config))
        self._repository.put_manifest(self._reference.tag, media_type, raw)
        digest = digest_of(raw)
        for layer, blob in zip(layers, blobs, strict=True):
            self._catalog.remember_blob(layer.diff_id, blob, self._place)
        with suppress(errors.NotFound):  # removed meanwhile, but the registry has it all the same
            self._catalog.tag(replace(self._reference, tag="", digest=digest), self._record.id)
        tag = self._reference.tag
        self._tell({"status": f"{tag}: digest: {digest} size: {len(raw)}"})
        aux = {"Tag": tag, "Digest": digest, "Size": len(raw)}
        self._tell({"progressDetail": {}, "aux": aux})
        return Pushed(self._reference, self._record, digest)

    # --- manifest -------------------------------------------------------------------------------

    def _manifest(self, blobs: list[KnownBlob], config_bytes: int) -> tuple[str, bytes]:
        """Return the manifest as the image came with it, or one of the same family."""
        raw = self._record.raw_manifest.encode()
        came = msgspec.json.decode(raw, type=Manifest) if raw else Manifest()
        came_as = came.media_type or OCI_MANIFEST
        if raw and [layer.digest for layer in came.layers or []] == [b.digest for b in blobs]:
            return came_as, raw
        only_gzip = all(_compression(blob.media_type) == "gzip" for blob in blobs)
        as_oci = (bool(raw) and came_as == OCI_MANIFEST) or not only_gzip
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST if as_oci else DOCKER_MANIFEST,
            "config": {
                "mediaType": OCI_CONFIG if as_oci else DOCKER_CONFIG,
                "size": config_bytes,
                "digest": self._record.id,
            },
            "layers": [
                {
                    "mediaType": _oci_type(blob.media_type) if as_oci else DOCKER_LAYER,
                    "size": blob.size_bytes,
                    "digest": blob.digest,
                }
                for blob in blobs
            ],
        }
        return str(document["mediaType"]), msgspec.json.format(msgspec.json.encode(document))

    # --- layers ---------------------------------------------------------------------------------

    def _send_layers(self, layers: list[LayerRecord]) -> list[KnownBlob]:
        """Send layers in a few threads; the first failure ends the others."""
        lines = {
            layer.diff_id: LayerProgress(self._tell, rules.short_id(layer.diff_id), layer.tar_bytes)
            for layer in reversed(layers)
        }
        for line in lines.values():
            line.say("Preparing")
        for line in list(lines.values())[PARALLEL_LAYERS:]:
            line.say("Waiting")
        unique = {layer.diff_id: layer for layer in layers}
        pool = ThreadPoolExecutor(PARALLEL_LAYERS, thread_name_prefix="push")
        try:
            tasks = {
                diff_id: pool.submit(self._send_layer, layer, lines[diff_id])
                for diff_id, layer in unique.items()
            }
            done, _ = wait(tasks.values(), return_when=FIRST_EXCEPTION)
            failures = [error for task in done if (error := task.exception()) is not None]
            if failures:
                self._failed.set()
                raise failures[0]
            return [tasks[layer.diff_id].result() for layer in layers]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _send_layer(self, layer: LayerRecord, line: LayerProgress) -> KnownBlob:
        known = self._catalog.blobs(layer.diff_id)
        # What this repository is known to have is asked for first.
        for blob in sorted(known, key=lambda blob: self._place not in blob.places):
            if self._is_there(blob.digest):
                line.say("Layer already exists")
                return blob
            if self._place in blob.places:
                self._catalog.forget_place(layer.diff_id, blob.digest, self._place)
        for blob in known:
            location = self._mount(blob, line)
            if location == "":
                return blob
        return self._patiently(lambda: self._upload(layer, line), line)

    def _is_there(self, digest: str) -> bool:
        try:
            return self._repository.has_blob(digest)
        except RegistryError as error:
            # Some registries refuse to look into a repository that the upload will make.
            if error.is_passing:
                raise
            return False

    def _mount(self, blob: KnownBlob, line: LayerProgress) -> str | None:
        """Have the registry take a blob from another of its repositories; "" where it did."""
        for place in reversed(blob.places):
            domain, _, path = place.partition("/")
            if domain != self._reference.domain or path == self._reference.path:
                continue
            try:
                location = self._repository.start_upload(mount=blob.digest, from_path=path)
            except (RegistryError, errors.Unauthorized):
                continue  # that repository may be none of ours, which is no failure of this push
            if location == "":
                line.say(f"Mounted from {path}")
                return ""
            self._repository.cancel_upload(location)
        return None

    def _upload(self, layer: LayerRecord, line: LayerProgress) -> KnownBlob:
        """Send a layer compressed: in a stream, at whose end its digest is known, or as a whole
        where the registry refuses that."""
        body = None
        if self._takes_streams:
            body = self._upload_stream(layer, line)
        if body is None:
            self._takes_streams = False
            body = self._upload_whole(layer, line)
        line.say("Pushed")
        return KnownBlob(digest=body.digest, size_bytes=body.size_bytes, media_type=DOCKER_LAYER)

    def _upload_stream(self, layer: LayerRecord, line: LayerProgress) -> _Compressed | None:
        """Return what was sent, or None where the registry takes no streams."""
        body = self._compressed(layer, line, "Pushing")
        location = self._repository.start_upload()
        try:
            location = self._repository.send_blob(location, body)
        except (RegistryError, Unreachable, Broken) as error:
            if isinstance(error, RegistryError) and is_stream_refusal(error):
                with suppress(RegistryError, errors.Unauthorized):
                    self._repository.cancel_upload(location)
                return None
            resumed = None
            if not isinstance(error, RegistryError) or error.is_passing:
                resumed = self._resume(layer, line, location)
            if resumed is None:
                raise
            return resumed
        self._repository.complete_upload(location, body.digest)
        return body

    def _resume(self, layer: LayerRecord, line: LayerProgress, location: str) -> _Compressed | None:
        self._check()
        resumed = resume(
            self._repository,
            location,
            lambda: self._compressed(layer, line, "Pushing"),
            lambda failures: self._pause(failures, line),
        )
        if resumed is None:
            return None
        location, body = resumed
        try:
            self._repository.complete_upload(location, body.digest)
        except RegistryError:
            return None  # two halves that do not fit: it is sent anew
        return body

    def _upload_whole(self, layer: LayerRecord, line: LayerProgress) -> _Compressed:
        """Such a request begins with size and digest: the layer is compressed twice, which takes
        less of the disk than keeping it."""
        measured = self._compressed(layer, line, "Preparing")
        for _ in measured:
            pass
        body = self._compressed(layer, line, "Pushing")
        self._repository.complete_upload(
            self._repository.start_upload(), measured.digest, body, size_bytes=measured.size_bytes
        )
        return body

    def _compressed(self, layer: LayerRecord, line: LayerProgress, status: str) -> _Compressed:
        tar = self._catalog.layers.open_tar(layer)
        return _Compressed(tar, lambda done: line.count(status, done), self._check)

    def _send_small(self, digest: str, data: bytes) -> None:
        def send() -> None:
            if not self._is_there(digest):
                self._repository.complete_upload(self._repository.start_upload(), digest, data)

        self._patiently(send, None)

    def _patiently(self, work: Callable[[], T], line: LayerProgress | None) -> T:
        """Try again where the connection or the registry failed."""
        for failures in range(ATTEMPTS):
            try:
                return work()
            except (RegistryError, Unreachable, Broken) as error:
                self._check()
                passing = not isinstance(error, RegistryError) or (
                    error.is_passing or error.status == 401
                )
                if not passing or failures == ATTEMPTS - 1:
                    raise
            self._pause(failures, line)
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, failures: int, line: LayerProgress | None) -> None:
        delay_s = min(FIRST_DELAY_S * 2**failures, MAXIMUM_DELAY_S) * random.uniform(0.8, 1.2)
        if line is not None:
            seconds = max(1, round(delay_s))
            line.say(f"Retrying in {seconds} second{'s' if seconds > 1 else ''}")
        self._repository.transport.cancellation.pause(delay_s)

    def _check(self) -> None:
        self._repository.transport.cancellation.check()
        if self._failed.is_set():
            raise errors.Conflict("another layer of the image failed")


class _Compressed:
    """A layer's gzip stream, to iterate over once; ``digest`` and ``size_bytes`` are those of what
    was given out."""

    def __init__(
        self, chunks: Iterator[bytes], count: Callable[[int], None], check: Callable[[], None]
    ) -> None:
        self._chunks = chunks
        self._count = count
        self._check = check
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def __iter__(self) -> Iterator[bytes]:
        compressor = isal_zlib.compressobj(COMPRESSION_LEVEL, isal_zlib.DEFLATED, _GZIP)
        done = 0
        pending = bytearray()
        for chunk in self._chunks:
            pending += compressor.compress(chunk)
            done += len(chunk)
            if len(pending) >= PIECE_BYTES:
                self._check()
                yield self._passed(pending)
            self._count(done)
        pending += compressor.flush()
        yield self._passed(pending)

    def _passed(self, pending: bytearray) -> bytes:
        piece = bytes(pending)
        pending.clear()
        self._hash.update(piece)
        self.size_bytes += len(piece)
        return piece


def _compression(media_type: str) -> str:
    if media_type.endswith("zstd"):
        return "zstd"
    return "gzip" if media_type.endswith("gzip") else ""


def _oci_type(media_type: str) -> str:
    compression = _compression(media_type)
    return f"{OCI_LAYER}+{compression}" if compression else OCI_LAYER
