"""The database: records, transactions, migrations, damage."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from deskd import errors
from deskd.domain.image import LayerRecord
from deskd.store import records
from deskd.store.database import Database, DuplicateKey, Records
from deskd.store.reserve import Reserve
from deskd.store.schema import MIGRATIONS


class Thing(msgspec.Struct, frozen=True):
    id: str
    name: str
    value: int = 0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(str(tmp_path / "engine.db"))
    yield database
    database.close()


def things(database: Database) -> Records[Thing]:
    return records.containers(database, Thing, key=lambda t: t.id, name=lambda t: t.name)


def test_records_come_back_as_they_were(database: Database) -> None:
    table = things(database)
    first, second = Thing("aa", "one", 1), Thing("ab", "two", 2)
    table.insert(first)
    table.put(second)
    assert table.get("aa") == first
    assert table.get("zz") is None
    assert table.all() == [first, second]
    assert table.find("name", "two") == [second]
    assert table.by_prefix("a") == [first, second]
    assert table.by_prefix("a_") == []
    assert table.keys() == ["aa", "ab"]
    table.put(Thing("aa", "uno", 5))
    assert table.find("name", "one") == []
    assert [t.id for t in table.all()] == ["aa", "ab"]  # a change keeps the place
    assert table.delete("aa") is True
    assert table.delete("aa") is False
    assert table.count() == 1


def test_a_taken_name_is_a_conflict_that_names_the_column(database: Database) -> None:
    table = things(database)
    table.insert(Thing("a", "one"))
    with pytest.raises(DuplicateKey) as caught:
        table.insert(Thing("b", "one"))
    assert caught.value.column == "name"
    with pytest.raises(DuplicateKey) as caught:
        table.insert(Thing("a", "two"))
    assert caught.value.column == "id"


def test_a_transaction_takes_effect_as_a_whole_or_not(database: Database) -> None:
    table = things(database)

    def fail() -> None:
        with database.transaction():
            table.insert(Thing("a", "one"))
            with database.transaction():
                table.insert(Thing("b", "two"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert table.all() == []
    with database.transaction():
        table.insert(Thing("a", "one"))
        table.insert(Thing("b", "two"))
    assert table.count() == 2


def test_threads_share_one_database(database: Database) -> None:
    def count() -> None:
        for _ in range(50):
            with database.transaction():
                numbers.append(database.next_number("counter"))

    numbers: list[int] = []
    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 201))


def test_records_outlive_the_engine(tmp_path: Path) -> None:
    path = str(tmp_path / "engine.db")
    layer = LayerRecord(chain_id="c", diff_id="d", number=3, size_bytes=7)
    first = Database.open(path)
    records.layers(first).insert(layer)
    first.set_meta("id", "x")
    first.close()
    first.close()
    second = Database.open(path)
    assert records.layers(second).all() == [layer]
    assert second.get_meta("id") == "x"
    assert second.get_meta("other") is None
    second.close()


def test_each_migration_runs_once_and_in_order(tmp_path: Path) -> None:
    def second(connection: sqlite3.Connection) -> None:
        ran.append(2)
        connection.execute("ALTER TABLE volumes ADD COLUMN driver TEXT NOT NULL DEFAULT 'local'")

    ran: list[int] = []
    path = str(tmp_path / "engine.db")
    old = Database.open(path)
    old.change("INSERT INTO volumes (id, document) VALUES ('v', '{}')")
    old.close()
    for _ in range(2):
        new = Database.open(path, [*MIGRATIONS, second])
        assert new.execute("SELECT id, driver FROM volumes") == [("v", "local")]
        assert new.execute("PRAGMA user_version") == [(len(MIGRATIONS) + 1,)]
        new.close()
    assert ran == [2]


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    def broken(connection: sqlite3.Connection) -> None:
        connection.execute("DROP TABLE volumes")
        connection.execute("this is not SQL")

    path = str(tmp_path / "engine.db")
    Database.open(path).close()
    with pytest.raises(errors.SystemFailure):
        Database.open(path, [*MIGRATIONS, broken])
    again = Database.open(path)
    assert again.execute("SELECT count(*) FROM volumes") == [(0,)]
    again.close()


def test_a_newer_schema_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = str(tmp_path / "engine.db")
    Database.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(errors.Unsupported, match=r"newer engine \(schema 99"):
        Database.open(path)


@pytest.mark.parametrize("damage", ["garbage", "torn"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "engine.db"
    if damage == "garbage":
        path.write_bytes(b"no database at all" * 500)
    else:
        database = Database.open(str(path))
        for number in range(200):
            things(database).insert(Thing(f"{number:064}", f"name{number}"))
        database.close()
        content = bytearray(path.read_bytes())
        content[len(content) // 2 :] = b"\xa5" * (len(content) - len(content) // 2)
        path.write_bytes(content)
    with pytest.raises(errors.DataLoss, match=f"{path} is damaged"):
        Database.open(str(path))


def test_a_damaged_document_is_named(database: Database) -> None:
    database.change("INSERT INTO containers (id, name, document) VALUES ('a', 'n', '{')")
    with pytest.raises(errors.DataLoss, match="containers a"):
        things(database).all()


def test_an_unusable_place_is_named(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("")
    with pytest.raises(errors.SystemFailure, match=r"file/engine.db cannot be used"):
        Database.open(str(tmp_path / "file" / "engine.db"))


def test_a_change_reaches_the_disk_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = threading.Event()
    fdatasync = os.fdatasync

    def note(fd: int) -> None:
        fdatasync(fd)
        if Path(f"/proc/self/fd/{fd}").readlink().name == "engine.db-wal":
            flushed.set()

    monkeypatch.setattr(os, "fdatasync", note)
    database = Database.open(str(tmp_path / "engine.db"))
    database.set_meta("a", "1")
    assert flushed.wait(60)
    flushed.clear()
    with database.transaction():
        database.set_meta("a", "2")
    database.close()
    assert flushed.is_set()


def test_the_logs_blocks_outlive_an_orderly_end(tmp_path: Path) -> None:
    path = str(tmp_path / "engine.db")
    inodes = set()
    for number in range(3):
        kept = Reserve(str(tmp_path / "reserve"))
        kept.open()
        database = Database.open(path, reserve=kept)
        log = Path(f"{path}-wal").stat()
        assert log.st_blocks * 512 >= kept.sizes.log
        inodes.add(log.st_ino)
        things(database).insert(Thing(f"key{number}", f"name{number}"))
        assert [t.id for t in things(database).all()] == [f"key{n}" for n in range(number + 1)]
        database.close()
        assert not Path(f"{path}-wal").exists()
        kept.close()
    assert len(inodes) == 1


def test_an_end_that_was_cut_off_keeps_the_log(tmp_path: Path) -> None:
    """Both names of the log are there: what was committed is in it, and not in the database."""
    kept = Reserve(str(tmp_path / "reserve"))
    kept.open()
    database = Database.open(str(tmp_path / "engine.db"), reserve=kept)
    things(database).insert(Thing("key", "name"))
    place = tmp_path / "killed"
    place.mkdir()
    for name in ("engine.db", "engine.db-wal"):
        (place / name).write_bytes((tmp_path / name).read_bytes())
    os.link(place / "engine.db-wal", place / "engine.db-log")
    database.close()
    again = Database.open(str(place / "engine.db"), reserve=kept)
    assert things(again).get("key") == Thing("key", "name")
    assert not (place / "engine.db-log").exists()
    again.close()
    kept.close()
