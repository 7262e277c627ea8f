"""What was removed and can still be brought back: one entry of the bin."""

from __future__ import annotations

import secrets
import time
from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """What an entry is."""

    CONTAINER = "container"
    IMAGE = "image"
    VOLUME = "volume"


class BinRecord(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """An entry. ``group`` names the command that removed it, with everything else that it removed;
    ``payload`` is the removed record as its owner wrote it. ``size_bytes`` is what the disk gets
    back with the entry. ``moving``: files are on their way into the bin.
    """

    id: str
    kind: Kind
    name: str
    group: str
    removed_ns: int
    size_bytes: int = 0
    payload: msgspec.Raw
    moving: bool = False


def new_entry(
    kind: Kind,
    name: str,
    group: str,
    record: msgspec.Struct,
    *,
    size_bytes: int,
    entry_id: str = "",
    moving: bool = False,
) -> BinRecord:
    """Return the entry of something that is removed now; ``entry_id`` is chosen where empty."""
    return BinRecord(
        id=entry_id or secrets.token_hex(16),
        kind=kind,
        name=name,
        group=group,
        removed_ns=time.time_ns(),
        size_bytes=size_bytes,
        payload=msgspec.Raw(msgspec.json.encode(record)),
        moving=moving,
    )
