"""The image catalog: which images there are, what they are called, what they stand on."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from msgspec import structs

from deskd import errors
from deskd.domain import image as rules
from deskd.domain.image import DIGEST_PREFIX, BlobRecord, ImageRecord, KnownBlob, TagRecord
from deskd.domain.reference import Reference, parse
from deskd.images.layers import LayerStore, StagedLayer
from deskd.record import replace
from deskd.store import records
from deskd.store.database import Database

_HEX = re.compile(r"[0-9a-f]{1,64}")
_ID_DIGITS = 64
_MAXIMUM_BLOBS = 4
_MAXIMUM_PLACES = 20


class Catalog:
    """Images and their names. Methods are single short transactions and may be called inline."""

    def __init__(self, database: Database, layers: LayerStore) -> None:
        self.database = database
        self.layers = layers
        self._images = records.images(database)
        self._tags = records.tags(database)
        self._blobs = records.blobs(database)

    # --- looking --------------------------------------------------------------------------------

    def get(self, name: str) -> ImageRecord:
        """Return the image of this reference, ID or ID prefix; raises ``NotFound``."""
        found = self.find(name)
        if found is None:
            raise self.missing(name)
        return found

    def find(self, name: str) -> ImageRecord | None:
        """Return the image of this reference, ID or ID prefix, or None.

        A tag comes before an ID prefix of the same spelling; an ambiguous prefix raises
        ``InvalidArgument``.
        """
        digits = name.removeprefix(DIGEST_PREFIX)
        if _HEX.fullmatch(digits) and (name != digits or len(digits) == _ID_DIGITS):
            return self._by_prefix(name, digits)
        if not name:
            raise errors.InvalidArgument("invalid reference format: the image's name is empty")
        reference = parse(name).with_default_tag()
        if reference.digest:
            reference = replace(reference, tag="")  # it says more than the tag beside it
        tagged = self._tags.get(str(reference))
        if tagged is not None:
            return self._images.get(tagged.image)
        if reference.digest:
            # An image that did not come from a registry has no manifest, only its ID.
            found = self._images.get(reference.digest)
            named = found and any(other.name == reference.name for other in self.names(found.id))
            return found if named else None
        return self._by_prefix(name, digits) if _HEX.fullmatch(digits) else None

    def missing(self, name: str) -> errors.NotFound:
        """Return Docker's error for a name that no image has."""
        if name.startswith(DIGEST_PREFIX):
            return errors.NotFound(f"No such image: {name}")
        if _HEX.fullmatch(name) and len(name) == _ID_DIGITS:
            return errors.NotFound(f"No such image: {DIGEST_PREFIX}{name}")
        return errors.NotFound(f"No such image: {parse(name).with_default_tag().familiar}")

    def _by_prefix(self, name: str, digits: str) -> ImageRecord | None:
        found = self._images.by_prefix(DIGEST_PREFIX + digits)
        if len(found) > 1:
            raise errors.InvalidArgument(
                f"the image ID prefix {name} is ambiguous: give more digits"
            )
        return found[0] if found else None

    def by_id(self, image_id: str) -> ImageRecord | None:
        """Return the image with exactly this ID, or None."""
        return self._images.get(image_id)

    def all(self) -> list[ImageRecord]:
        """Return every image, oldest addition first."""
        return self._images.all()

    def names(self, image_id: str) -> list[Reference]:
        """Return the names of an image, in alphabetical order."""
        return [parse(tag.reference) for tag in self._sorted_tags(image_id)]

    def all_names(self) -> dict[str, list[Reference]]:
        """Return the names of all images by image ID."""
        names: dict[str, list[Reference]] = {}
        for tag in sorted(self._tags.all(), key=lambda tag: tag.reference):
            names.setdefault(tag.image, []).append(parse(tag.reference))
        return names

    def children(self, image_id: str) -> list[ImageRecord]:
        """Return the images whose parent this is."""
        return self._images.find("parent", image_id)

    def _sorted_tags(self, image_id: str) -> list[TagRecord]:
        return sorted(self._tags.find("image", image_id), key=lambda tag: tag.reference)

    # --- changing -------------------------------------------------------------------------------

    def add(
        self,
        raw_config: bytes,
        staged: Sequence[StagedLayer],
        names: Sequence[Reference] = (),
        *,
        parent: str = "",
        raw_manifest: bytes = b"",
    ) -> ImageRecord:
        """Record an image with its new layers and names, all or nothing.

        ``staged`` are the layers that the store lacks, lowest first and on top of those that it
        has. Raises ``DataLoss`` where a layer's content is not what the configuration says.
        """
        image_id = rules.image_id(raw_config)
        config = rules.parse_config(raw_config, image_id)
        chain = list(zip(config.diff_ids, rules.chain_ids(config.diff_ids), strict=True))
        with self.layers.recording():
            below, size_bytes = "", 0
            for diff_id, chain_id in chain:
                layer = self.layers.get(chain_id)
                if layer is None:
                    layer = self.layers.record(below, self._staged_layer(staged, diff_id))
                below, size_bytes = layer.chain_id, size_bytes + layer.size_bytes
            known = self._images.get(image_id)
            if known is None:
                self._images.insert(
                    ImageRecord(
                        id=image_id,
                        raw_config=raw_config.decode(),
                        raw_manifest=raw_manifest.decode(),
                        # It may have been removed since; an image is whole without it.
                        parent=parent if self._images.has(parent) else "",
                        size_bytes=size_bytes,
                    )
                )
            elif raw_manifest:
                self._images.put(structs.replace(known, raw_manifest=raw_manifest.decode()))
            for name in names:
                self.tag(name, image_id)
        return self.get(image_id)

    @staticmethod
    def _staged_layer(staged: Sequence[StagedLayer], diff_id: str) -> StagedLayer:
        for layer in staged:
            if layer.unpacked.diff_id == diff_id and layer.is_there:
                return layer
        raise errors.DataLoss(
            f"no layer of the archive has the digest {diff_id} that its image configuration names: "
            "the archive is damaged"
        )

    def tag(self, reference: Reference, image_id: str) -> None:
        """Name an image; a name in use moves here."""
        with self.database.transaction():
            record = self._images.get(image_id)
            if record is None:
                raise errors.NotFound(f"No such image: {image_id}")
            self._tags.put(TagRecord(reference=str(reference.with_default_tag()), image=image_id))
            self._images.put(structs.replace(record, last_tagged_ns=time.time_ns()))

    def holder(self, reference: Reference) -> str:
        """Return the ID of the image that has exactly this name, or an empty text."""
        tagged = self._tags.get(str(reference.with_default_tag()))
        return tagged.image if tagged else ""

    def put_back(self, image: ImageRecord) -> None:
        """Record an image again whose layers are still here."""
        self._images.insert(
            image if self._images.has(image.parent) else structs.replace(image, parent="")
        )

    def set_parent(self, image_id: str, parent_id: str) -> None:
        """Note that an image was made from another one."""
        with self.database.transaction():
            self._images.put(structs.replace(self.get(image_id), parent=parent_id))

    # --- registries -----------------------------------------------------------------------------

    def blobs(self, diff_id: str) -> list[KnownBlob]:
        """Return the compressed forms of a layer that registries are known to hold."""
        record = self._blobs.get(diff_id)
        return record.blobs if record else []

    def remember_blob(self, diff_id: str, blob: KnownBlob, place: str) -> None:
        """Note that the repository ``place`` (``host/path``) holds this form of a layer."""
        with self.database.transaction():
            others = [other for other in self.blobs(diff_id) if other.digest != blob.digest]
            known = next((o for o in self.blobs(diff_id) if o.digest == blob.digest), blob)
            places = [*(other for other in known.places if other != place), place]
            noted = structs.replace(known, places=places[-_MAXIMUM_PLACES:])
            blobs = [*others, noted][-_MAXIMUM_BLOBS:]
            self._blobs.put(BlobRecord(diff_id=diff_id, blobs=blobs))

    def forget_place(self, diff_id: str, digest: str, place: str) -> None:
        """Undo ``remember_blob``: the repository turned out not to hold it any more."""
        with self.database.transaction():
            blobs = [
                structs.replace(blob, places=[p for p in blob.places if p != place])
                if blob.digest == digest
                else blob
                for blob in self.blobs(diff_id)
            ]
            self._blobs.put(BlobRecord(diff_id=diff_id, blobs=blobs))

    def untag(self, reference: Reference) -> bool:
        """Take a name away; return whether there was such a name."""
        return self._tags.delete(str(reference.with_default_tag()))

    def delete(self, image_id: str) -> None:
        """Remove an image that has no names; its layers stay until ``release_unused``."""
        self._images.delete(image_id)
