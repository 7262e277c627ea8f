"""Manifests and indexes as registries and image layouts hold them.

Two families with the same shape: Docker's schema 2 and the OCI image specification. Which layer
belongs to which platform is said by an index (OCI) or a manifest list (Docker).
"""

from __future__ import annotations

import hashlib
import platform as machine_facts

import msgspec

from deskd import errors
from deskd.domain.foreign_json import FOREIGN_JSON_ERRORS
from deskd.record import Record

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
SCHEMA_1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
INDEXES = (OCI_INDEX, DOCKER_LIST)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
_LAYER_KINDS = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
)

ARCHITECTURES = {
    "x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386",
    "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64",
}  # fmt: skip
"""Machine names as uname(2) says them, and as images name them (GOARCH)."""

ARCHITECTURE_WORDS = frozenset({
    *ARCHITECTURES, *ARCHITECTURES.values(), "i386", "x86-64", "armhf", "armel", "loong64", "mips",
    "mipsle", "mips64", "mips64le", "ppc64", "wasm",
})  # fmt: skip
SYSTEM_WORDS = ("linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "wasip1", "macos")
"""What a platform of one word may be, beside an architecture."""

_ARM_VARIANTS = ("v5", "v6", "v7", "v8")


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """``platform`` of a descriptor, and what a client asks for with ``--platform``."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """An OCI content descriptor."""

    digest: str
    media_type: str = ""
    size: int = 0
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """An image manifest or an image index; ``media_type`` may be left out of OCI ones."""

    schema_version: int = 0
    media_type: str = ""
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None


class FetchedManifest(Record):
    """A manifest as it came, byte for byte."""

    media_type: str
    digest: str
    raw: bytes

    def parsed(self) -> Manifest:
        """Return what it says; raises ``InvalidArgument`` where that is no manifest."""
        try:
            manifest = msgspec.json.decode(self.raw, type=Manifest)
        except FOREIGN_JSON_ERRORS as error:
            raise errors.InvalidArgument(
                f"the manifest {self.digest} is not valid: {error}"
            ) from error
        if manifest.manifests is None and manifest.config is None:
            raise errors.InvalidArgument(
                f"the manifest {self.digest} ({self.media_type or 'without a media type'}) "
                "describes neither an image nor an index of images"
            )
        return manifest


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of these bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def host_architecture() -> str:
    """Return this machine's architecture as images name it."""
    machine = machine_facts.machine()
    return ARCHITECTURES.get(machine, machine)


def parse_platform(text: str) -> Platform:
    """Parse ``os[/arch[/variant]]`` (or an architecture alone); defaults are this machine's.

    Raises ``InvalidArgument``, also for an operating system that is not Linux.
    """
    parts = [part.lower() for part in text.split("/")] if text else []
    if any(not part for part in parts) or len(parts) > 3:
        raise errors.InvalidArgument(
            f"invalid platform {text!r}: write os[/arch[/variant]], for example linux/arm64"
        )
    if len(parts) == 1 and parts[0] in ARCHITECTURE_WORDS:
        parts = ["linux", parts[0]]
    elif len(parts) == 1 and parts[0] not in SYSTEM_WORDS:
        raise errors.InvalidArgument(
            f'"{text}": unknown operating system or architecture: write for example linux/arm64'
        )
    system = parts[0] if parts else "linux"
    if system != "linux":
        raise errors.InvalidArgument(f"the operating system {system!r} is not supported: use linux")
    architecture = parts[1] if len(parts) > 1 else host_architecture()
    architecture = ARCHITECTURES.get(architecture, architecture)
    return Platform(architecture, system, parts[2] if len(parts) > 2 else "")


def parse_platform_object(text: str) -> Platform:
    """Read a platform given as JSON (``{"os": …, "architecture": …}``).

    Raises ``InvalidArgument``.
    """
    try:
        found = msgspec.json.decode(text.encode(), type=Platform)
    except FOREIGN_JSON_ERRORS as error:
        raise errors.InvalidArgument(f"invalid platform: {error}") from error
    if not found.os or not found.architecture:
        raise errors.InvalidArgument("invalid platform: both os and architecture must be provided")
    return found


def suitable(candidates: list[Descriptor], wanted: Platform) -> list[Descriptor]:
    """Return the entries of an index that suit a platform, the best first.

    An entry without a platform suits everybody, but comes last.
    """
    ranked = [(_rank(entry.platform, wanted), entry) for entry in candidates]
    found = [(rank, entry) for rank, entry in ranked if rank is not None]
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


def _rank(offered: Platform | None, wanted: Platform) -> int | None:
    if offered is None or not (offered.os or offered.architecture):
        return 100
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return None
    if offered.variant == wanted.variant:
        return 0
    if wanted.architecture == "arm":
        return _arm_rank(offered.variant or "v7", wanted.variant or "v7")
    if wanted.architecture == "arm64" and {offered.variant, wanted.variant} == {"", "v8"}:
        return 1
    # Newer instruction sets ("amd64/v3") are taken only by who asks for them.
    return None if offered.variant else 2


def _arm_rank(offered: str, wanted: str) -> int | None:
    """Older variants run on newer processors, the nearest one best."""
    if offered not in _ARM_VARIANTS or wanted not in _ARM_VARIANTS:
        return None
    distance = _ARM_VARIANTS.index(wanted) - _ARM_VARIANTS.index(offered)
    return distance if distance >= 0 else None


def is_layer(media_type: str) -> bool:
    """Say whether a blob of this type is a file system layer."""
    return media_type.startswith(_LAYER_KINDS) and "tar" in media_type


def is_image_config(media_type: str) -> bool:
    """Say whether a manifest with such a configuration is an image (and not a chart or the like).

    Old builders wrote ``application/octet-stream`` or nothing.
    """
    return media_type in (OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream", "")
