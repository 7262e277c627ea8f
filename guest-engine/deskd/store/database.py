"""The engine's durable state: one SQLite file with a schema version and ordered migrations.

Decision on threads and asyncio: one connection, guarded by a re-entrant lock. A single statement
takes some tens of microseconds (WAL, ``synchronous=NORMAL``: a commit waits for no disk, a
``Flusher`` brings it there within a second, and ``Durability`` at once where a client is told that
something is there), so services on the event loop call it inline.
Transactions hold the lock; they therefore contain statements, renames and their directory's sync
only, never an ``await`` and never bulk I/O.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from deskd import errors
from deskd.kernel.files import allocate
from deskd.store.flusher import Flusher
from deskd.store.reserve import Reserve
from deskd.store.schema import MIGRATIONS, Migration

T = TypeVar("T")
R = TypeVar("R")
Value = str | int
BUSY_TIMEOUT_S = 10.0
_FRAME_BYTES = 4096 + 24  # a page in the write-ahead log
_LOG_HEADER_BYTES = 32
_CHECKPOINT_FRAMES = 1000  # SQLite's default


class DuplicateKey(errors.Conflict):
    """A record with the same unique value exists; ``column`` says which value that is."""

    def __init__(self, table: str, column: str) -> None:
        super().__init__(
            f"there is already an entry in {table} with this {column}: choose another {column}"
        )
        self.table = table
        self.column = column


@contextmanager
def translated_errors(path: str) -> Iterator[None]:
    """Turn SQLite's failures into the engine's errors; the file's name is part of the text."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        # "UNIQUE constraint failed: containers.name" is all that SQLite says about the column.
        if error.sqlite_errorname in ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"):
            table, _, column = str(error).rpartition(": ")[2].partition(".")
            raise DuplicateKey(table, column) from error
        raise errors.Conflict(f"the database {path} refuses the entry: {error}") from error
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise _damaged(path, str(error)) from error
        if name.startswith("SQLITE_FULL"):
            raise errors.ResourceExhausted(
                f"no space left for the database {path}: free space on its disk "
                "(`docker system prune` removes what is not in use)"
            ) from error
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise errors.Unavailable(
                f"the database {path} is held by another process: stop the other engine first"
            ) from error
        raise errors.SystemFailure(f"the database {path} cannot be used: {error}") from error


def _damaged(path: str, detail: str) -> errors.DataLoss:
    return errors.DataLoss(
        f"the database {path} is damaged ({detail}): restore it from a backup, or move the "
        "data root away to start with an empty one"
    )


class Database:
    """One open database file. Use ``open``; ``close`` it when the engine ends."""

    def __init__(
        self, path: str, connection: sqlite3.Connection, reserve: Reserve | None = None
    ) -> None:
        self.path = path
        self.reserve = reserve
        self._connection = connection
        self._lock = threading.RLock()
        self._flusher = Flusher(path)
        self._depth = 0

    @classmethod
    def open(
        cls,
        path: str,
        migrations: Sequence[Migration] = MIGRATIONS,
        reserve: Reserve | None = None,
    ) -> Database:
        """Open or create the file, check it and bring its schema up to date. With a ``reserve``
        what the engine records does not depend on the room that others leave on the disk.

        Raises ``DataLoss`` for a damaged file and ``Unsupported`` for one that a newer engine
        has written.
        """
        try:
            Path(path).parent.mkdir(mode=0o710, parents=True, exist_ok=True)
        except OSError as error:
            raise errors.SystemFailure(
                f"the database {path} cannot be used ({error.strerror}): choose another --data-root"
            ) from error
        if reserve is not None:
            reserve.restore(reserve.sizes.log)
            _bring_log_back(path)
        with translated_errors(path):
            while True:
                try:
                    connection = _connect(path, migrations)
                    break
                except sqlite3.OperationalError as error:
                    if reserve is None or not _is_full(error) or not reserve.give_up():
                        raise
            if reserve is not None:
                _allocate_log(connection, path, reserve)
        return cls(path, connection, reserve)

    def close(self) -> None:
        """Close the file; idempotent."""
        self._flusher.close()
        with self._lock:
            if self.reserve is not None:
                _keep_log(self.path)
            self._connection.close()

    def flush(self) -> None:
        """Wait until all that was committed is on the disk; for what must not happen before."""
        self._flusher.flush()

    def with_room(self, work: Callable[[], R]) -> R:
        """Do something for a removal that takes a few blocks, if need be from the reserve."""
        return work() if self.reserve is None else self.reserve.with_room(work)

    def check_room(self) -> None:
        """Raise ``ResourceExhausted`` where the disk is too full for new data."""
        if self.reserve is not None:
            self.reserve.check()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements inside take effect together or not at all; may be nested.

        The body must not ``await``: other tasks on the same thread would join the transaction.
        """
        with self._lock, translated_errors(self.path):
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            self._connection.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
                self._connection.execute("COMMIT")
                self._flusher.note()
            except BaseException as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if _is_full(error) and self.reserve is not None:
                    self.reserve.give_up()  # what was begun is gone, the next try has room
                raise
            finally:
                self._depth = 0

    def execute(self, sql: str, parameters: Sequence[Value | bytes] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return all its rows."""
        with self._lock, translated_errors(self.path):
            return self._connection.execute(sql, parameters).fetchall()

    def change(self, sql: str, parameters: Sequence[Value | bytes] = ()) -> int:
        """Run one changing statement and return the number of rows that it touched."""
        with self._lock, translated_errors(self.path):
            count = self._changed(sql, parameters)
            if not self._depth:
                self._flusher.note()
            return count

    def _changed(self, sql: str, parameters: Sequence[Value | bytes]) -> int:
        while True:
            try:
                return self._connection.execute(sql, parameters).rowcount
            except sqlite3.OperationalError as error:
                if self._depth or not _is_full(error):
                    raise
                if self.reserve is None or not self.reserve.give_up():
                    raise

    def get_meta(self, key: str) -> str | None:
        """Return one of the engine's own values (its ID, counters), or None."""
        rows = self.execute("SELECT value FROM meta WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def set_meta(self, key: str, value: str) -> None:
        """Set one of the engine's own values."""
        self.change("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def next_number(self, counter: str) -> int:
        """Return the next number of a named sequence; no number is ever given twice."""
        with self.transaction():
            number = int(self.get_meta(counter) or "0") + 1
            self.set_meta(counter, str(number))
        return number


def _is_full(error: BaseException) -> bool:
    # The second is what SQLite says where the log's index finds no room.
    name = getattr(error, "sqlite_errorname", "") or ""
    return name.startswith(("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"))


def _connect(path: str, migrations: Sequence[Migration]) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise _damaged(path, verdict)
        _migrate(connection, path, migrations)
    except BaseException:
        connection.close()
        raise
    return connection


def _keep_log(path: str) -> None:
    """Keep the blocks of the write-ahead log, which SQLite deletes when it closes the database:
    whoever fills the disk would have them before the next start."""
    with suppress(OSError):
        os.link(f"{path}-wal", f"{path}-log")


def _bring_log_back(path: str) -> None:
    """Undo ``_keep_log``. Where SQLite did not delete its log, that is the one that counts. Where
    it did, all is in the database: without its header a log is an empty one (the SQLite file
    format, 4.1)."""
    kept, log = f"{path}-log", f"{path}-wal"
    with suppress(OSError):
        if os.path.lexists(log):
            os.unlink(kept)
            return
        fd = os.open(kept, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.pwrite(fd, bytes(_LOG_HEADER_BYTES), 0)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        os.rename(kept, log)


def _allocate_log(connection: sqlite3.Connection, path: str, reserve: Reserve) -> None:
    """Give the write-ahead log its blocks before it needs them, and have it begin anew before it
    outgrows them: a record then needs no room that a container could have taken."""
    log_bytes = reserve.sizes.log
    frames = min(_CHECKPOINT_FRAMES, log_bytes * 2 // 3 // _FRAME_BYTES)
    connection.execute(f"PRAGMA wal_autocheckpoint = {max(frames, 1)}")
    # Without a file system that can, or without room, the reserve is what there is.
    with suppress(OSError):
        fd = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC)
        try:
            reserve.with_room(lambda: allocate(fd, 0, log_bytes, keep_size=True))
        finally:
            os.close(fd)


def _migrate(connection: sqlite3.Connection, path: str, migrations: Sequence[Migration]) -> None:
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > len(migrations):
        raise errors.Unsupported(
            f"the database {path} was written by a newer engine (schema {found}, this engine "
            f"knows {len(migrations)}): update deskd, or use another --data-root"
        )
    for version, migration in enumerate(migrations[found:], start=found + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have migrated while this one waited for the lock.
            if connection.execute("PRAGMA user_version").fetchone()[0] < version:
                migration(connection)
                connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


class Records(Generic[T]):
    """One table of typed JSON documents.

    ``key`` gives a record's primary key (column ``id``); ``columns`` gives the further columns of
    the table, by which records can be found and which the schema may declare unique.
    """

    def __init__(
        self,
        database: Database,
        table: str,
        record_type: type[T],
        *,
        key: Callable[[T], str],
        columns: Mapping[str, Callable[[T], Value]] | None = None,
    ) -> None:
        self.database = database
        self.table = table
        self._key = key
        self._columns = dict(columns or {})
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(record_type)
        names = ["id", *self._columns, "document"]
        self._insert = (
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        )
        updates = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        self._upsert = f"{self._insert} ON CONFLICT (id) DO UPDATE SET {updates}"

    def get(self, key: str) -> T | None:
        """Return the record with this primary key, or None."""
        found = self._select("WHERE id = ?", (key,))
        return found[0] if found else None

    def all(self) -> list[T]:
        """Return every record, oldest insertion first."""
        return self._select("ORDER BY rowid", ())

    def find(self, column: str, value: Value) -> list[T]:
        """Return the records whose ``column`` has this value."""
        if column not in self._columns:
            raise KeyError(column)
        return self._select(f"WHERE {column} = ? ORDER BY rowid", (value,))

    def by_prefix(self, prefix: str, *, limit: int = 2) -> list[T]:
        """Return up to ``limit`` records whose primary key starts with ``prefix``."""
        return self._select("WHERE substr(id, 1, ?) = ? LIMIT ?", (len(prefix), prefix, limit))

    def keys(self) -> list[str]:
        """Return every primary key, oldest insertion first."""
        return [
            row[0] for row in self.database.execute(f"SELECT id FROM {self.table} ORDER BY rowid")
        ]

    def has(self, key: str) -> bool:
        """Say whether there is a record with this primary key."""
        return bool(self.database.execute(f"SELECT 1 FROM {self.table} WHERE id = ?", (key,)))

    def count(self) -> int:
        """Return the number of records."""
        return int(self.database.execute(f"SELECT count(*) FROM {self.table}")[0][0])

    def insert(self, record: T) -> None:
        """Add a record; raises ``DuplicateKey`` where a unique value is taken."""
        self.database.change(self._insert, self._row(record))

    def put(self, record: T) -> None:
        """Add a record or replace the one with the same primary key."""
        self.database.change(self._upsert, self._row(record))

    def delete(self, key: str) -> bool:
        """Remove a record; return whether there was one."""
        return self.database.change(f"DELETE FROM {self.table} WHERE id = ?", (key,)) > 0

    def _row(self, record: T) -> list[Value | bytes]:
        columns: list[Value | bytes] = [column(record) for column in self._columns.values()]
        return [self._key(record), *columns, self._encoder.encode(record)]

    def _select(self, tail: str, parameters: Sequence[Value]) -> list[T]:
        rows = self.database.execute(f"SELECT id, document FROM {self.table} {tail}", parameters)
        return [self._decode(key, document) for key, document in rows]

    def _decode(self, key: str, document: bytes) -> T:
        try:
            return self._decoder.decode(document)
        except msgspec.DecodeError as error:
            raise _damaged(self.database.path, f"{self.table} {key}: {error}") from error
