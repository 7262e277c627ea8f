"""The database's schema: an ordered list of migrations, each tested.

Version N is what the first N migrations make (``PRAGMA user_version``). A released migration is
never edited; a change of the schema is a new one at the end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

Migration = Callable[[sqlite3.Connection], None]


def first_tables(connection: sqlite3.Connection) -> None:
    """Version 1: a table for each kind of object; ``document`` is its JSON.

    ``roots`` names the top layer below each container's writable root, so that layers live as
    long as anything stands on them.
    """
    for statement in (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE containers (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE,"
        " document BLOB NOT NULL)",
        "CREATE TABLE layers (id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE,"
        " document BLOB NOT NULL)",
        "CREATE TABLE images (id TEXT PRIMARY KEY, parent TEXT NOT NULL, document BLOB NOT NULL)",
        "CREATE INDEX images_by_parent ON images (parent)",
        "CREATE TABLE tags (id TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images (id),"
        " document BLOB NOT NULL)",
        "CREATE INDEX tags_by_image ON tags (image)",
        "CREATE TABLE roots (id TEXT PRIMARY KEY, document BLOB NOT NULL)",
        "CREATE TABLE networks (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE,"
        " document BLOB NOT NULL)",
        "CREATE TABLE volumes (id TEXT PRIMARY KEY, document BLOB NOT NULL)",
    ):
        connection.execute(statement)


def blobs_of_registries(connection: sqlite3.Connection) -> None:
    """Version 2: ``blobs`` says under which digests registries hold a layer, by diff ID."""
    connection.execute("CREATE TABLE blobs (id TEXT PRIMARY KEY, document BLOB NOT NULL)")


def network_faults(connection: sqlite3.Connection) -> None:
    """Version 3: network faults by name."""
    connection.execute("CREATE TABLE faults (id TEXT PRIMARY KEY, document BLOB NOT NULL)")


def bin_of_removed(connection: sqlite3.Connection) -> None:
    """Version 4: what was removed and can be brought back."""
    connection.execute(
        "CREATE TABLE bin (id TEXT PRIMARY KEY, kind TEXT NOT NULL, document BLOB NOT NULL)"
    )


def peaks_of_removed(connection: sqlite3.Connection) -> None:
    """Version 5: the most memory that removed containers held, by image and name or command."""
    connection.execute("CREATE TABLE peaks (id TEXT PRIMARY KEY, document BLOB NOT NULL)")


MIGRATIONS: tuple[Migration, ...] = (
    first_tables,
    blobs_of_registries,
    network_faults,
    bin_of_removed,
    peaks_of_removed,
)
