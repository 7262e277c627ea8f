"""Images as the OCI image specification and Docker describe them: configuration and records.

An image's ID is the SHA-256 of its configuration's bytes, so these bytes are kept as they came.
A layer is named by its diff ID (SHA-256 of the uncompressed tar) and, with all below it, by its
chain ID (OCI image specification, "Layer ChainID").
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from deskd import errors
from deskd.domain.container import ContainerConfig
from deskd.domain.foreign_json import FOREIGN_JSON_ERRORS

DIGEST_PREFIX = "sha256:"


class History(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One step of an image's making; ``empty_layer`` steps have no layer of their own."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class RootFs(msgspec.Struct, kw_only=True, frozen=True):
    """The layers, lowest first, by diff ID."""

    type: str = "layers"
    diff_ids: list[str] | None = None


class ImageConfig(msgspec.Struct, kw_only=True, frozen=True):
    """The image configuration (OCI ``application/vnd.oci.image.config.v1+json``)."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    created: str | None = None
    author: str = ""
    docker_version: str = ""
    comment: str = ""
    config: ContainerConfig | None = None
    rootfs: RootFs = RootFs()
    history: list[History] | None = None

    @property
    def diff_ids(self) -> list[str]:
        return self.rootfs.diff_ids or []


class ImageRecord(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A stored image. ``raw_config`` is the exact text whose SHA-256 is the ID, ``raw_manifest``
    that of the manifest with which it came from a registry."""

    id: str
    raw_config: str
    raw_manifest: str = ""
    parent: str = ""
    size_bytes: int = 0
    last_tagged_ns: int = 0

    @property
    def config(self) -> ImageConfig:
        """The configuration, parsed."""
        return parse_config(self.raw_config.encode(), self.id)

    @property
    def container_config(self) -> ContainerConfig:
        """What a container takes from the image where its creator said nothing."""
        return self.config.config or ContainerConfig()


class TagRecord(msgspec.Struct, kw_only=True, frozen=True):
    """A name of an image: ``reference`` in normal form, with a tag (``…/busybox:latest``) or a
    digest."""

    reference: str
    image: str


class LayerRecord(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A stored layer. ``number`` names its directory; short, so that a mount's option string
    holds many. ``size_bytes`` is the sum of the sizes of its files and symbolic links,
    ``tar_bytes`` the length of its uncompressed tar."""

    chain_id: str
    diff_id: str
    number: int
    parent: str = ""
    size_bytes: int = 0
    tar_bytes: int = 0


class KnownBlob(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A compressed form of a layer, and the repositories (``host/path``) that are known to hold it,
    the latest last."""

    digest: str
    size_bytes: int
    media_type: str
    places: list[str] = []


class BlobRecord(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What registries call a layer: a layer that was compressed twice has two blobs."""

    diff_id: str
    blobs: list[KnownBlob] = []


class BinnedImage(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What a removal of an image took: names and, with the last of them, the image itself."""

    id: str
    names: list[str] = []
    image: ImageRecord | None = None


class RootRecord(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A container's writable root and the top layer that it stands on (empty: none).
    ``volatile``: it need not survive a crash of the machine. ``remapped``: its files belong to the
    subordinate IDs of the engine's containers. ``written``: it has a directory for what it writes.
    """

    container_id: str
    chain_id: str = ""
    image: str = ""
    volatile: bool = False
    remapped: bool = False
    written: bool = False


def image_id(raw_config: bytes) -> str:
    """Return the ID of the image with this configuration."""
    return DIGEST_PREFIX + hashlib.sha256(raw_config).hexdigest()


def parse_config(raw: bytes, name: str) -> ImageConfig:
    """Parse a configuration; raises ``InvalidArgument`` that names the image ``name``."""
    try:
        config = msgspec.json.decode(raw, type=ImageConfig)
    except FOREIGN_JSON_ERRORS as error:
        raise errors.InvalidArgument(
            f"the configuration of image {name} is not valid: {error}"
        ) from error
    if config.rootfs.type != "layers":
        raise errors.InvalidArgument(
            f"the configuration of image {name} has an unknown rootfs type {config.rootfs.type!r}"
        )
    return config


def chain_ids(diff_ids: list[str]) -> list[str]:
    """Return the chain ID of each layer, lowest first.

    ``ChainID(L0) = DiffID(L0)``; ``ChainID(Ln) = SHA256(ChainID(Ln-1) + " " + DiffID(Ln))``.
    """
    chain: list[str] = []
    for diff_id in diff_ids:
        if not chain:
            chain.append(diff_id)
        else:
            joined = f"{chain[-1]} {diff_id}".encode()
            chain.append(DIGEST_PREFIX + hashlib.sha256(joined).hexdigest())
    return chain


def short_id(identifier: str) -> str:
    """Return the 12 digits that people read."""
    return identifier.removeprefix(DIGEST_PREFIX)[:12]


def encode_config(config: ImageConfig) -> bytes:
    """Return the bytes of a new image's configuration: zero values left out, as Docker does."""
    document: dict[str, Any] = {
        "architecture": config.architecture,
        "os": config.os,
        "created": config.created,
        "rootfs": config.rootfs,
        "history": config.history or [],
    }
    for name in ("variant", "author", "docker_version", "comment"):
        if value := getattr(config, name):
            document[name] = value
    document["config"] = compact(msgspec.to_builtins(config.config or ContainerConfig()))
    return msgspec.json.encode(document, order="sorted")


def compact(document: dict[str, Any]) -> dict[str, Any]:
    """Drop a JSON object's zero values (null, false, 0, empty), as an image configuration does."""
    return {key: value for key, value in document.items() if value}
