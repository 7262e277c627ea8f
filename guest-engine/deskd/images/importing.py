"""New images: from one flat root file system (import) and from a container (commit)."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from datetime import UTC, datetime

import msgspec

from deskd import errors
from deskd.domain import image as rules
from deskd.domain.container import ContainerConfig
from deskd.domain.image import History, ImageConfig, ImageRecord, RootFs
from deskd.domain.manifest import parse_platform
from deskd.domain.reference import Reference
from deskd.images import changes as instructions
from deskd.images.catalog import Catalog
from deskd.images.pack import END
from deskd.images.streams import ByteReader, decompressed, is_damage
from deskd.record import Record

EMPTY_DIFF_ID = f"sha256:{hashlib.sha256(END).hexdigest()}"
"""The layer of a container that changed nothing, of which an image has no need."""


class ImportRequest(Record):
    """What a client asked of ``import``."""

    reference: Reference | None = None
    changes: tuple[str, ...] = ()
    message: str = ""
    platform: str = ""


class CommitRequest(Record):
    """What a client asked of ``commit``; ``config`` is the new image's configuration."""

    container_id: str
    image_id: str
    config: ContainerConfig
    created_by: str = ""
    reference: Reference | None = None
    comment: str = ""
    author: str = ""


def now() -> str:
    """Return the time as image configurations write it (RFC 3339, nanoseconds, UTC)."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def check(request: ImportRequest) -> None:
    """Raise ``InvalidArgument`` for what can be seen to be wrong before any byte is read."""
    instructions.apply(ContainerConfig(), request.changes)
    parse_platform(request.platform)


def import_image(catalog: Catalog, source: ByteReader, request: ImportRequest) -> ImageRecord:
    """Make an image of one layer; nothing is left behind on an error."""
    platform = parse_platform(request.platform)
    config = instructions.apply(ContainerConfig(), request.changes)
    try:
        plain = decompressed(source)
    except Exception as error:
        if is_damage(error):
            raise errors.InvalidArgument(f"the archive is damaged ({error})") from error
        raise
    with ExitStack() as undo:
        staged = catalog.layers.stage(plain)
        undo.callback(catalog.layers.discard, staged)
        created = now()
        comment = request.message or "Imported from -"
        raw_config = rules.encode_config(
            ImageConfig(
                architecture=platform.architecture,
                os=platform.os,
                variant=platform.variant,
                created=created,
                comment=comment,
                config=config,
                rootfs=RootFs(diff_ids=[staged.unpacked.diff_id]),
                history=[History(created=created, comment=comment)],
            )
        )
        names = [request.reference] if request.reference else []
        return catalog.add(raw_config, [staged], names)


def commit_image(catalog: Catalog, tar: ByteReader, request: CommitRequest) -> ImageRecord:
    """Make an image of a container's changes, given as a layer's tar, on top of its image."""
    base = catalog.by_id(request.image_id)
    if base is None:
        raise errors.NotFound(
            f"the image {rules.short_id(request.image_id)} of container "
            f"{request.container_id[:12]} was removed: commit needs it"
        )
    below = base.config
    with ExitStack() as undo:
        staged = catalog.layers.stage(tar)
        undo.callback(catalog.layers.discard, staged)
        created = now()
        unchanged = staged.unpacked.diff_id == EMPTY_DIFF_ID
        layers = [] if unchanged else [staged]
        step = History(
            created=created,
            created_by=request.created_by,
            author=request.author,
            comment=request.comment,
            empty_layer=unchanged,
        )
        raw_config = rules.encode_config(
            msgspec.structs.replace(
                below,
                created=created,
                author=request.author,
                comment=request.comment,
                config=image_part(request.config),
                rootfs=RootFs(
                    diff_ids=[*below.diff_ids, *(layer.unpacked.diff_id for layer in layers)]
                ),
                history=[*(below.history or []), step],
            )
        )
        names = [request.reference] if request.reference else []
        return catalog.add(raw_config, layers, names, parent=base.id)


def image_part(config: ContainerConfig) -> ContainerConfig:
    """Return what of a container's configuration belongs to an image."""
    return msgspec.structs.replace(
        config,
        hostname="",
        domainname="",
        attach_stdin=False,
        attach_stdout=False,
        attach_stderr=False,
        tty=False,
        open_stdin=False,
        stdin_once=False,
        image="",
        network_disabled=False,
        mac_address="",
    )
