"""The typed tables of the database, one function for each kind of record."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from deskd.domain.binned import BinRecord
from deskd.domain.image import BlobRecord, ImageRecord, LayerRecord, RootRecord, TagRecord
from deskd.domain.memory_peak import PastPeak
from deskd.store.database import Database, Records

T = TypeVar("T")


def images(database: Database) -> Records[ImageRecord]:
    """Images by ID; ``parent`` is a column."""
    return Records(
        database,
        "images",
        ImageRecord,
        key=lambda record: record.id,
        columns={"parent": lambda record: record.parent},
    )


def tags(database: Database) -> Records[TagRecord]:
    """Names of images by the reference in normal form; ``image`` is a column."""
    return Records(
        database,
        "tags",
        TagRecord,
        key=lambda record: record.reference,
        columns={"image": lambda record: record.image},
    )


def layers(database: Database) -> Records[LayerRecord]:
    """Layers by chain ID; ``number`` is a unique column."""
    return Records(
        database,
        "layers",
        LayerRecord,
        key=lambda record: record.chain_id,
        columns={"number": lambda record: record.number},
    )


def blobs(database: Database) -> Records[BlobRecord]:
    """What registries call layers, by diff ID."""
    return Records(database, "blobs", BlobRecord, key=lambda record: record.diff_id)


def roots(database: Database) -> Records[RootRecord]:
    """Writable roots by container ID."""
    return Records(database, "roots", RootRecord, key=lambda record: record.container_id)


def containers(
    database: Database, record_type: type[T], *, key: Callable[[T], str], name: Callable[[T], str]
) -> Records[T]:
    """Containers by ID; ``name`` is a unique column."""
    return Records(database, "containers", record_type, key=key, columns={"name": name})


def networks(
    database: Database, record_type: type[T], *, key: Callable[[T], str], name: Callable[[T], str]
) -> Records[T]:
    """Networks by ID; ``name`` is a unique column."""
    return Records(database, "networks", record_type, key=key, columns={"name": name})


def volumes(database: Database, record_type: type[T], *, key: Callable[[T], str]) -> Records[T]:
    """Volumes by name."""
    return Records(database, "volumes", record_type, key=key)


def faults(database: Database, record_type: type[T], *, key: Callable[[T], str]) -> Records[T]:
    """Network faults by name."""
    return Records(database, "faults", record_type, key=key)


def binned(database: Database) -> Records[BinRecord]:
    """What was removed, by an ID of its own; ``kind`` is a column."""
    return Records(
        database,
        "bin",
        BinRecord,
        key=lambda record: record.id,
        columns={"kind": lambda record: str(record.kind)},
    )


def peaks(database: Database) -> Records[PastPeak]:
    """What removed containers held at most, by image and name or command."""
    return Records(database, "peaks", PastPeak, key=lambda record: record.key)
