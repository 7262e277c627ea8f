"""The app's models, tasks, stream reader and log view, without an engine."""

from __future__ import annotations

import queue
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QCoreApplication
from PySide6.QtTest import QAbstractItemModelTester
from pytestqt.qtbot import QtBot

from desk.errors import DeskError, ImageError
from desk.gui.gateway import holds_images
from desk.gui.models.listing import (
    CONTAINER_COLUMNS,
    ContainerRow,
    container_row,
    image_rows,
    memory_text,
    port_text,
    size_text,
)
from desk.gui.models.rows import RowsModel
from desk.gui.stores.stream import StreamReader
from desk.gui.tasks import TaskRunner
from desk.gui.views.log_view import LogView
from desk.gui.views.parts import FilteredTable


def row(identifier: str, name: str, state: str = "running") -> ContainerRow:
    return ContainerRow(identifier, name, "busybox", state, "Up", (), 0)


@pytest.fixture
def model(qtbot: QtBot) -> RowsModel[ContainerRow]:
    made = RowsModel[ContainerRow](CONTAINER_COLUMNS, lambda each: each.id)
    QAbstractItemModelTester(made, QAbstractItemModelTester.FailureReportingMode.Fatal, made)
    return made


def shown(model: RowsModel[ContainerRow]) -> list[str]:
    return [model.row(number).name for number in range(model.rowCount())]


def test_replace_removes_updates_and_appends(model: RowsModel[ContainerRow]) -> None:
    model.replace([row("1", "one"), row("2", "two"), row("3", "three")])
    changed: list[int] = []
    model.dataChanged.connect(lambda first, _last: changed.append(first.row()))
    model.replace([row("4", "four"), row("3", "drei"), row("1", "one")])
    assert shown(model) == ["one", "drei", "four"]
    assert changed == [1]
    model.replace([])
    assert shown(model) == []


def test_a_refresh_keeps_the_selection(qtbot: QtBot, model: RowsModel[ContainerRow]) -> None:
    table = FilteredTable(model, "nothing")
    qtbot.addWidget(table)
    assert table.currentIndex() == 0
    model.replace([row("1", "one"), row("2", "two")])
    assert table.currentIndex() == 1
    table.table.selectRow(table.proxy.mapFromSource(model.index(1, 0)).row())
    model.replace([row("0", "zero"), row("2", "two", "exited")])
    assert [model.row(number).id for number in table.selected_rows()] == ["2"]


def test_the_filter_looks_at_every_column(qtbot: QtBot, model: RowsModel[ContainerRow]) -> None:
    table = FilteredTable(model, "nothing")
    qtbot.addWidget(table)
    model.replace([row("1", "web"), row("2", "database")])
    table.proxy.setFilterFixedString("BASE")
    assert table.proxy.rowCount() == 1


def test_rows_are_made_of_the_engines_answers() -> None:
    made = container_row(
        {
            "Id": "abc",
            "Names": ["/web"],
            "Image": "nginx",
            "State": "running",
            "Status": "Up 2 minutes",
            "Created": 5,
            "Ports": [
                {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                {"PrivatePort": 53, "Type": "udp"},
            ],
        }
    )
    assert made.name == "web"
    assert made.running
    assert port_text(made.ports) == "53/udp, 8080 → 80"
    rows = image_rows(
        {"Id": "sha256:1", "RepoTags": ["localhost:5000/a:1", "b:2"], "Size": 4262000}
    )
    assert [each.reference for each in rows] == ["localhost:5000/a:1", "b:2"]
    assert size_text(rows[0].size_bytes) == "4.26 MB"
    assert image_rows({"Id": "sha256:1", "RepoTags": []})[0].reference == "sha256:1"
    assert memory_text(1.5 * 2**30) == "1.5 GiB"


def test_a_task_hands_its_result_to_the_starting_thread(qtbot: QtBot) -> None:
    runner = TaskRunner()
    results: list[tuple[Any, bool]] = []
    here = threading.get_ident()

    def note(result: Any) -> None:
        results.append((result, threading.get_ident() == here))

    runner.run(lambda: threading.get_ident() != here, note, note)
    qtbot.waitUntil(lambda: bool(results), timeout=60_000)
    assert results == [(True, True)]
    assert runner.close()


def test_the_binding_gives_back_constants_with_a_reference(qtbot: QtBot) -> None:
    # Where they are counted (before Python 3.12), a binding that forgets it ends in a crash.
    calls, before = 1000, sys.getrefcount(None)
    for _ in range(calls):
        QCoreApplication.processEvents()
    assert sys.getrefcount(None) > before - calls // 2


def test_a_tasks_error_arrives_with_its_hint(qtbot: QtBot) -> None:
    runner = TaskRunner()
    errors: list[DeskError] = []

    def fail() -> None:
        raise DeskError("it broke", hint="mend it")

    def fail_unexpectedly() -> None:
        raise ValueError("odd")

    runner.run(fail, lambda _: None, errors.append)
    runner.run(fail_unexpectedly, lambda _: None, errors.append)
    qtbot.waitUntil(lambda: len(errors) == 2, timeout=60_000)
    assert {error.text for error in errors} == {"it broke", "something in the app failed: odd"}
    assert all(error.hint for error in errors)
    assert runner.close()


def test_no_callback_after_close(qtbot: QtBot) -> None:
    runner = TaskRunner()
    gate = threading.Event()
    called: list[object] = []
    runner.run(gate.wait, called.append, called.append)
    gate.set()
    assert runner.close()
    qtbot.wait(50)
    assert called == []


class QueueStream:
    """A stream that another thread feeds and may close."""

    def __init__(self) -> None:
        self.queue: queue.Queue[object] = queue.Queue()

    def __iter__(self) -> Iterator[object]:
        while (item := self.queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self) -> None:
        self.queue.put(None)


def test_the_stream_reader_passes_elements_and_ends_quietly(qtbot: QtBot) -> None:
    reader, stream = StreamReader(), QueueStream()
    items: list[object] = []
    ends: list[object] = []
    reader.item.connect(items.append)
    reader.ended.connect(ends.append)
    reader.start(lambda: stream)
    stream.queue.put("a")
    stream.queue.put("b")
    qtbot.waitUntil(lambda: items == ["a", "b"], timeout=60_000)
    reader.stop()
    qtbot.wait(50)
    assert ends == []


def test_the_stream_reader_tells_why_a_stream_ended(qtbot: QtBot) -> None:
    reader, stream = StreamReader(), QueueStream()
    ends: list[object] = []
    reader.ended.connect(ends.append)
    reader.start(lambda: stream)
    error = DeskError("the engine went away")
    stream.queue.put(error)
    qtbot.waitUntil(lambda: ends == [error], timeout=60_000)
    reader.stop()


def test_the_log_view_survives_any_cut_and_drops_escapes(qtbot: QtBot) -> None:
    view = LogView()
    qtbot.addWidget(view)
    view.begin("Logs of web")
    whole = "grün \x1b[1;31mrot\x1b[0m\r\nzwei\n".encode()
    for position in range(len(whole)):
        view.append(whole[position : position + 1])
    assert view.text == "grün rot\nzwei\n"
    view.begin("Logs of other")
    assert view.text == ""


def test_image_archives_and_root_file_systems_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]")
    with tarfile.open(tmp_path / "saved.tar", "w") as tar:
        tar.add(tmp_path / "manifest.json", "manifest.json")
    with tarfile.open(tmp_path / "root.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "manifest.json", "./etc/manifest.json")
    (tmp_path / "noise.tar").write_bytes(b"noise" * 500)
    assert holds_images(tmp_path / "saved.tar")
    assert not holds_images(tmp_path / "root.tar.gz")
    with pytest.raises(ImageError, match=r"noise.tar is not a tar archive"):
        holds_images(tmp_path / "noise.tar")
