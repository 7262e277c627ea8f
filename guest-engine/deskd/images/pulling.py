"""Pulling images: manifest, configuration, then the layers that are not here, several at a time.

A layer is never stored compressed: its bytes are hashed, decompressed and unpacked below ``tmp``
while they come, and everything becomes part of the store in one transaction after every digest was
right. Runs in a thread of its own and has its layers fetched by a few more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Set
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from deskd import errors
from deskd.domain import image as rules
from deskd.domain.image import ImageConfig, ImageRecord, KnownBlob
from deskd.domain.manifest import (
    INDEXES,
    SCHEMA_1,
    Descriptor,
    FetchedManifest,
    Manifest,
    Platform,
    is_image_config,
    is_layer,
    parse_platform,
    suitable,
)
from deskd.domain.reference import Reference, check_digest
from deskd.images.catalog import Catalog
from deskd.images.connecting import Registries, with_repository
from deskd.images.layers import MAXIMUM_LAYERS, StagedLayer
from deskd.images.progress import LayerProgress, Tell
from deskd.images.streams import decompressed, is_damage
from deskd.record import Record, field, replace
from deskd.registry.blobs import BlobStream, fetch_small
from deskd.registry.cancellation import Cancellation
from deskd.registry.failures import RegistryError, WrongContent
from deskd.registry.repository import Repository

T = TypeVar("T")
PARALLEL_LAYERS = 3
CONFIG_BYTES = 8 * 1024 * 1024
_INDEX_DEPTH = 3
_LOCK_POLL_S = 0.2


class PullRequest(Record):
    """What a client asked for: a tag, a digest, or with neither every tag of the repository.

    ``platform`` is empty for this machine's.
    """

    reference: Reference
    platform: str = ""


class Pulled(Record):
    """One name that was pulled."""

    reference: Reference
    record: ImageRecord


class _Shared(Record, frozen=False):
    """A layer that several pulls want at once: fetched once, under ``lock``."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    staged: StagedLayer | None = None
    users: int = 0


class Transfers:
    """The layers that are on their way now, by blob digest; one object for the whole engine."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self.recording = threading.Lock()
        """Held while staged layers become records: two pulls may hold the same staged layer."""
        self._shared: dict[str, _Shared] = {}

    @contextmanager
    def share(self, digest: str) -> Iterator[_Shared]:
        """Take part in a layer's transfer; what nobody has recorded goes with the last."""
        with self._lock:
            shared = self._shared.setdefault(digest, _Shared())
            shared.users += 1
        try:
            yield shared
        finally:
            with self._lock:
                shared.users -= 1
                if not shared.users:
                    del self._shared[digest]
                    if shared.staged is not None:
                        self._catalog.layers.discard(shared.staged)


def pull(
    catalog: Catalog, transfers: Transfers, registries: Registries, wanted: PullRequest, tell: Tell
) -> list[Pulled]:
    """Fetch what ``wanted`` says; return the names, in the order of the work.

    Raises ``NotFound`` with Docker's words where there is no such image, and what else can go
    wrong with registries; then nothing of an image is left.
    """
    parse_platform(wanted.platform)
    started = _Started()

    def work(repository: Repository) -> list[Pulled]:
        return _Pull(catalog, transfers, repository, wanted, tell, started).run()

    return with_repository(registries, wanted.reference, work)


class _Started(Record, frozen=False):
    """Whether the first line was told: it is told once, whatever mirrors do."""

    told: bool = False


class _Pull:
    def __init__(
        self,
        catalog: Catalog,
        transfers: Transfers,
        repository: Repository,
        wanted: PullRequest,
        tell: Tell,
        started: _Started,
    ) -> None:
        self._catalog = catalog
        self._transfers = transfers
        self._repository = repository
        self._wanted = wanted
        self._tell = tell
        self._started = started
        self._platform = parse_platform(wanted.platform)

    def run(self) -> list[Pulled]:
        reference = self._wanted.reference
        if reference.tag or reference.digest:
            pulled, is_new = self._pull_one(reference)
            self._tell_status(reference.familiar, is_new=is_new)
            return [pulled]
        tags = self._translated(self._repository.tags, reference)
        if not tags:
            raise errors.NotFound(f"repository {reference.familiar_name} has no tags")
        found = []
        any_new = False
        for tag in tags:
            self._started.told = False
            pulled, is_new = self._pull_one(replace(reference, tag=tag))
            found.append(pulled)
            any_new = any_new or is_new
        self._tell_status(reference.familiar_name, is_new=any_new)
        return found

    def _tell_status(self, name: str, *, is_new: bool) -> None:
        said = "Downloaded newer image for" if is_new else "Image is up to date for"
        self._tell({"status": f"Status: {said} {name}"})

    @staticmethod
    def _translated(request: Callable[[], T], reference: Reference) -> T:
        try:
            return request()
        except RegistryError as error:
            raise translate(error, reference) from error

    def _pull_one(self, reference: Reference, attempts: int = 3) -> tuple[Pulled, bool]:
        """Pull one tag or digest; return it and whether the name means another image now."""
        unchanged = self._unchanged(reference)
        if unchanged is not None:
            record, digest = unchanged
            self._tell_begin(reference)
        else:
            fetched = self._translated(
                lambda: self._repository.manifest(reference.digest or reference.tag), reference
            )
            self._tell_begin(reference)
            record = self._translated(lambda: self._pull_manifest(fetched, reference), reference)
            digest = fetched.digest
        self._tell({"status": f"Digest: {digest}"})
        by_digest = Reference(reference.domain, reference.path, "", digest)
        name = by_digest if reference.digest else reference
        before = self._catalog.find(str(name))
        try:
            with self._catalog.database.transaction():
                self._catalog.tag(by_digest, record.id)
                if not reference.digest:
                    self._catalog.tag(reference, record.id)
        except errors.NotFound:
            if attempts == 1:
                raise
            # A prune has met the image before it had its name.
            return self._pull_one(reference, attempts - 1)
        self._catalog.database.flush()  # a client is told next that it has the image
        self._warn_of_platform(record, reference)
        return Pulled(name, record), before is None or before.id != record.id

    def _tell_begin(self, reference: Reference) -> None:
        if not self._started.told:
            self._started.told = True
            label = str(replace(reference, tag="")) if reference.digest else reference.tag
            self._tell({"status": f"Pulling from {reference.path}", "id": label})

    def _unchanged(self, reference: Reference) -> tuple[ImageRecord, str] | None:
        """Return the image and digest of a name that means here what it means in the registry.

        Only the digest is asked for: registries that ration pulls do not count that.
        """
        record = self._catalog.find(str(reference))
        if record is None or not self._suits(record) or not self._is_whole(record):
            return None
        names = self._catalog.names(record.id)
        known = {name.digest for name in names if name.name == reference.name and name.digest}
        if not known:
            return None
        try:
            digest = reference.digest or self._repository.manifest_digest(reference.tag)
        except RegistryError:
            return None  # the request for the manifest itself tells what is wrong
        return (record, digest) if digest in known else None

    def _is_whole(self, record: ImageRecord) -> bool:
        """Say whether the store has all layers: a repair may have taken out a damaged one."""
        return self._catalog.layers.are_here(record.config.diff_ids)

    def _suits(self, record: ImageRecord) -> bool:
        config = record.config
        found = Platform(config.architecture, config.os, config.variant)
        return bool(suitable([Descriptor("", platform=found)], self._platform))

    def _warn_of_platform(self, record: ImageRecord, reference: Reference) -> None:
        if not self._wanted.platform or self._suits(record):
            return
        config, wanted = record.config, self._platform
        found = Platform(config.architecture, config.os, config.variant)
        self._tell(
            {
                "status": f"WARNING: image with reference {reference.familiar} was found but its "
                f"platform ({found}) does not match the specified platform ({wanted})"
            }
        )

    # --- manifests ------------------------------------------------------------------------------

    def _pull_manifest(self, fetched: FetchedManifest, reference: Reference) -> ImageRecord:
        found = self._of_platform(fetched, reference)
        manifest = found.parsed()
        config_blob, layers = self._check(manifest, found, reference)
        known = self._catalog.by_id(config_blob.digest)
        if known is not None and self._is_whole(known):
            self._remember(known, layers)
            return known
        raw_config = fetch_small(
            self._repository, config_blob, CONFIG_BYTES, "the image configuration"
        )
        config = rules.parse_config(raw_config, reference.familiar)
        if len(layers) != len(config.diff_ids):
            raise errors.InvalidArgument(
                f"the image {reference.familiar} has {len(layers)} layers in its manifest and "
                f"{len(config.diff_ids)} in its configuration: it is refused"
            )
        for diff_id in config.diff_ids:
            check_digest(diff_id)
        chain_ids = rules.chain_ids(config.diff_ids)
        sources = {
            layer.chain_id for layer in self._catalog.layers.all()
            if layer.diff_id in config.diff_ids
        }  # fmt: skip
        with self._catalog.layers.holding({*chain_ids, *sources}):
            return self._pull_layers(found, raw_config, config, layers)

    def _of_platform(self, fetched: FetchedManifest, reference: Reference) -> FetchedManifest:
        """Follow indexes to the manifest for the wanted platform."""
        for _ in range(_INDEX_DEPTH):
            if fetched.media_type in SCHEMA_1:
                raise errors.Unsupported(
                    "Docker Image manifest version 2, schema 1 is not supported: ask the author "
                    f"of {reference.familiar} to upgrade the image to the OCI Format or Docker "
                    "Image manifest v2, schema 2"
                )
            manifest = fetched.parsed()
            if fetched.media_type not in INDEXES and not manifest.manifests:
                return fetched
            chosen = suitable(manifest.manifests or [], self._platform)
            if not chosen:
                raise errors.NotFound(
                    f"no matching manifest for {self._platform} in the manifest list entries"
                )
            check_digest(chosen[0].digest)
            fetched = self._repository.manifest(chosen[0].digest)
        raise errors.InvalidArgument(
            f"the image {reference.familiar} is an index of indexes without end: it is refused"
        )

    @staticmethod
    def _check(
        manifest: Manifest, fetched: FetchedManifest, reference: Reference
    ) -> tuple[Descriptor, list[Descriptor]]:
        """Return configuration and layers of a manifest that describes a Linux image."""
        config, layers = manifest.config, manifest.layers or []
        if config is None or not is_image_config(config.media_type):
            kind = config.media_type if config else fetched.media_type
            raise errors.InvalidArgument(
                f"{reference.familiar} is not a container image (its configuration is of the type "
                f"{kind}): it cannot be pulled"
            )
        if len(layers) > MAXIMUM_LAYERS:
            raise errors.InvalidArgument(
                f"max depth exceeded: an image has at most {MAXIMUM_LAYERS} layers"
            )
        for blob in (config, *layers):
            check_digest(blob.digest)
            if blob.size < 0:
                raise errors.InvalidArgument(f"the size of the blob {blob.digest} is negative")
        for layer in layers:
            if not is_layer(layer.media_type):
                raise errors.InvalidArgument(
                    f"{reference.familiar} has a layer of the unknown type {layer.media_type!r}: "
                    "it cannot be pulled"
                )
        return config, layers

    # --- layers ---------------------------------------------------------------------------------

    def _pull_layers(
        self,
        fetched: FetchedManifest,
        raw_config: bytes,
        config: ImageConfig,
        layers: list[Descriptor],
    ) -> ImageRecord:
        store = self._catalog.layers
        wanted = list(zip(layers, config.diff_ids, rules.chain_ids(config.diff_ids), strict=True))
        lines = {
            layer.digest: LayerProgress(self._tell, rules.short_id(layer.digest), layer.size)
            for layer in layers
        }
        missing: dict[str, _Wanted] = {}
        here = {layer.diff_id for layer in store.all()}  # in whatever place: it can be copied
        for layer, diff_id, chain_id in wanted:
            if diff_id in here:
                lines[layer.digest].say("Already exists")
            elif layer.digest not in missing:
                lines[layer.digest].say("Pulling fs layer")
                missing[layer.digest] = _Wanted(layer, diff_id, chain_id, lines[layer.digest])
        for later in list(missing.values())[PARALLEL_LAYERS:]:
            later.line.say("Waiting")
        with ExitStack() as stack:
            staged = self._fetch_all(list(missing.values()), stack)
            if staged:
                store.sync()
            stack.enter_context(self._transfers.recording)
            copies = stack.enter_context(store.copies(config.diff_ids, staged))
            record = self._catalog.add(raw_config, [*staged, *copies], raw_manifest=fetched.raw)
        self._remember(record, layers, set(missing))
        return record

    def _remember(
        self, record: ImageRecord, layers: list[Descriptor], fetched: Set[str] = frozenset()
    ) -> None:
        """Note where blobs are, which spares a push its uploads.

        Only of blobs that were fetched, now or before: a manifest alone may say anything of a
        layer that is here already.
        """
        place = self._wanted.reference.name
        for layer, diff_id in zip(layers, record.config.diff_ids, strict=False):
            known = {blob.digest for blob in self._catalog.blobs(diff_id)}
            if layer.digest in fetched or layer.digest in known:
                blob = KnownBlob(
                    digest=layer.digest, size_bytes=layer.size, media_type=layer.media_type
                )
                self._catalog.remember_blob(diff_id, blob, place)

    def _fetch_all(self, wanted: list[_Wanted], stack: ExitStack) -> list[StagedLayer]:
        """Fetch layers in a few threads; the first failure ends the others."""
        if not wanted:
            return []
        # A failure of one layer ends the others, but not the client's other pulls.
        cancellation = self._repository.transport.cancellation
        shared = [stack.enter_context(self._transfers.share(w.layer.digest)) for w in wanted]
        failed = threading.Event()
        pool = ThreadPoolExecutor(PARALLEL_LAYERS, thread_name_prefix="pull")
        try:
            tasks = [
                pool.submit(self._fetch, want, share, failed)
                for want, share in zip(wanted, shared, strict=True)
            ]
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
            failures = [error for task in done if (error := task.exception()) is not None]
            if failures:
                failed.set()
                pool.shutdown(wait=True, cancel_futures=True)
                cancellation.check()
                raise next((e for e in failures if not isinstance(e, _Ended)), failures[0])
            return [layer for task in tasks if (layer := task.result()) is not None]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, want: _Wanted, shared: _Shared, failed: threading.Event) -> StagedLayer | None:
        """Return one layer, unpacked, or None where it is in the store by now."""
        cancellation = self._repository.transport.cancellation
        while not shared.lock.acquire(timeout=_LOCK_POLL_S):
            _check(cancellation, failed)
        try:
            _check(cancellation, failed)
            if self._catalog.layers.get(want.chain_id) is None and (
                shared.staged is None or not shared.staged.is_there
            ):
                shared.staged = self._download(want, failed)
            else:
                want.line.say("Download complete")
            want.line.say("Pull complete")
            return shared.staged
        finally:
            shared.lock.release()

    def _download(self, want: _Wanted, failed: threading.Event) -> StagedLayer:
        stream = self._stream(want, failed)
        try:
            return self._unpack(stream, want)
        except (WrongContent, errors.InvalidArgument):
            # What was put together of two connections may be wrong where each of them was right.
            if not stream.resumed:
                raise
        finally:
            stream.close()
        stream = self._stream(want, failed)
        try:
            return self._unpack(stream, want)
        finally:
            stream.close()

    def _stream(self, want: _Wanted, failed: threading.Event) -> BlobStream:
        cancellation = self._repository.transport.cancellation

        def on_bytes(position: int) -> None:
            _check(cancellation, failed)
            want.line.count("Downloading", position)

        def on_pause(delay_s: float) -> None:
            seconds = max(1, round(delay_s))
            want.line.say(f"Retrying in {seconds} second{'s' if seconds > 1 else ''}")

        return BlobStream(self._repository, want.layer, on_bytes, on_pause)

    def _unpack(self, stream: BlobStream, want: _Wanted) -> StagedLayer:
        store = self._catalog.layers
        try:
            staged = store.stage(decompressed(stream), synced=False)
        except Exception as error:
            if not isinstance(error, errors.InvalidArgument) and not is_damage(error):
                raise
            stream.finish()  # a wrong digest says more than what it did to the archive
            raise errors.InvalidArgument(
                f"the layer {want.layer.digest} cannot be unpacked: {error}"
            ) from error
        with ExitStack() as undo:
            undo.callback(store.discard, staged)
            want.line.say("Verifying Checksum")
            stream.finish()
            if staged.unpacked.diff_id != want.diff_id:
                raise WrongContent(
                    f"the layer {want.layer.digest} holds {staged.unpacked.diff_id} and not "
                    f"{want.diff_id}, which the image's configuration says: the image is refused"
                )
            want.line.say("Download complete")
            want.line.count("Extracting", want.layer.size)
            undo.pop_all()
        return staged


class _Wanted(Record):
    layer: Descriptor
    diff_id: str
    chain_id: str
    line: LayerProgress


class _Ended(errors.DeskdError):
    """Another layer of the same image failed."""


def _check(cancellation: Cancellation, failed: threading.Event) -> None:
    cancellation.check()
    if failed.is_set():
        raise _Ended("another layer of the image failed")


def translate(error: RegistryError, reference: Reference) -> errors.DeskdError:
    """Return Docker's error for a registry's refusal of a pull."""
    said = error.reason
    if error.code == "DENIED":
        return errors.NotFound(
            f"pull access denied for {reference.familiar_name}, repository does not exist or may "
            f"require 'docker login': {said}"
        )
    if error.code == "MANIFEST_UNKNOWN" or (error.status == 404 and not error.code):
        reason = said if error.code else "manifest unknown: manifest unknown"
        return errors.NotFound(f"manifest for {reference.familiar} not found: {reason}")
    if error.code == "NAME_UNKNOWN":
        return errors.NotFound(f"repository {reference.familiar_name} not found: {said}")
    return error
