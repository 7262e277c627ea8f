"""The window against a real engine: a machine of the local driver, driven by clicks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QFileDialog, QMessageBox, QPushButton
from pytestqt.qtbot import QtBot
from tests.bench.engines import busybox_archive

from desk.compose import Desk
from desk.engine.client import EngineClient
from desk.gui.app import App
from desk.machine.model import MachineSpec
from desk.paths import Home

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

WAIT_MS = 60_000


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    made = Desk(Home(home))
    try:
        made.manager.create(MachineSpec(name="default", driver="local"))
        made.manager.start("default")
        with made.client("default", progress=lambda _: None) as client:
            archive = busybox_archive(home)
            list(client.images.import_([archive.read_bytes()], repository="box", tag="1"))
        yield made
        made.manager.remove("default", force=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def client(desk: Desk) -> Iterator[EngineClient]:
    with desk.client("default", progress=lambda _: None) as made:
        yield made
        for container in made.containers.list(all_=True):
            made.containers.remove(container["Id"], force=True)


@pytest.fixture
def app(qtbot: QtBot, desk: Desk, client: EngineClient) -> Iterator[App]:
    made = App(desk, "default")
    qtbot.addWidget(made.window)
    made.start()
    yield made
    made.window.close()


def names(app: App) -> list[str]:
    model = app.window.containers.model
    return sorted(model.row(number).name for number in range(model.rowCount()))


def run(client: EngineClient, name: str, *command: str) -> str:
    made = client.containers.create({"Image": "box:1", "Cmd": list(command)}, name=name)
    identifier = str(made["Id"])
    client.containers.start(identifier)
    return identifier


def click(qtbot: QtBot, button: QPushButton) -> None:
    qtbot.waitUntil(button.isEnabled, timeout=WAIT_MS)
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def state(app: App, container_id: str) -> str:
    model = app.window.containers.model
    number = model.row_of(container_id)
    return "" if number is None else model.row(number).state


def agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QMessageBox, "question", lambda *_: QMessageBox.StandardButton.Yes)


def test_containers_come_and_go_by_events(qtbot: QtBot, app: App, client: EngineClient) -> None:
    qtbot.waitUntil(lambda: app.window.footer.text() == "default: Running", timeout=WAIT_MS)
    identifier = run(client, "elsewhere", "sleep", "1000")
    qtbot.waitUntil(lambda: state(app, identifier) == "running", timeout=WAIT_MS)
    client.containers.remove(identifier, force=True)
    qtbot.waitUntil(lambda: names(app) == [], timeout=WAIT_MS)


def test_stop_start_and_remove_by_button(
    qtbot: QtBot, app: App, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(monkeypatch)
    page = app.window.containers
    identifier = run(client, "clicked", "sh", "-c", "trap exit TERM; while :; do sleep 0.1; done")
    qtbot.waitUntil(lambda: state(app, identifier) == "running", timeout=WAIT_MS)
    page.select(identifier)
    click(qtbot, page.stop_button)
    qtbot.waitUntil(lambda: state(app, identifier) == "exited", timeout=WAIT_MS)
    click(qtbot, page.start_button)
    qtbot.waitUntil(lambda: state(app, identifier) == "running", timeout=WAIT_MS)
    click(qtbot, page.remove_button)
    qtbot.waitUntil(lambda: names(app) == [], timeout=WAIT_MS)
    assert client.containers.list(all_=True) == []
    assert not app.window.banner.isVisible()


def test_the_selected_containers_logs_are_live(
    qtbot: QtBot, app: App, client: EngineClient
) -> None:
    identifier = run(client, "talker", "sh", "-c", "echo one; sleep 1; echo two; sleep 1000")
    qtbot.waitUntil(lambda: state(app, identifier) == "running", timeout=WAIT_MS)
    app.window.containers.select(identifier)
    view = app.window.containers.log_view
    qtbot.waitUntil(lambda: view.text == "one\ntwo\n", timeout=WAIT_MS)


def test_a_refusal_is_shown_with_the_engines_words(
    qtbot: QtBot, app: App, client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(monkeypatch)
    run(client, "holder", "sleep", "1000")
    images = app.window.images
    app.window.sidebar.setCurrentRow(1)
    qtbot.waitUntil(lambda: images.model.rowCount() > 0, timeout=WAIT_MS)
    images.list.table.selectAll()
    click(qtbot, images.remove_button)
    qtbot.waitUntil(app.window.banner.isVisible, timeout=WAIT_MS)
    assert "container" in app.window.banner.text


def test_an_image_is_imported_from_a_file_and_removed(
    qtbot: QtBot, app: App, desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    agree(monkeypatch)
    archive = busybox_archive(tmp_path).rename(tmp_path / "Tools.tar")
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (str(archive), ""))
    page = app.window.images
    app.window.sidebar.setCurrentRow(1)
    click(qtbot, page.load_button)

    def row_of_tools() -> int | None:
        rows = [page.model.row(number).repository for number in range(page.model.rowCount())]
        return rows.index("tools") if "tools" in rows else None

    # A list that was under way may show the image before the import's own answer is there.
    told = "Imported Tools.tar as tools:latest."
    qtbot.waitUntil(lambda: app.window.banner.text == told, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: row_of_tools() is not None, timeout=WAIT_MS)
    number = row_of_tools()
    assert number is not None
    index = page.list.proxy.mapFromSource(page.model.index(number, 0))
    page.list.table.selectRow(index.row())
    click(qtbot, page.remove_button)
    qtbot.waitUntil(lambda: row_of_tools() is None, timeout=WAIT_MS)


def test_one_click_restarts_the_machine(qtbot: QtBot, app: App, client: EngineClient) -> None:
    page = app.window.machine
    app.window.sidebar.setCurrentRow(2)
    qtbot.waitUntil(lambda: page.state.text() == "Running", timeout=WAIT_MS)
    assert page.url.text().startswith("unix://")
    ran = run(client, "before", "sleep", "1000")
    qtbot.waitUntil(lambda: state(app, ran) == "running", timeout=WAIT_MS)
    steps: list[str] = []
    app.machine.step.connect(steps.append)
    with qtbot.waitSignals([app.machine.working_changed] * 2, timeout=120_000):
        click(qtbot, page.restart_button)
    assert steps
    qtbot.waitUntil(lambda: page.state.text() == "Running", timeout=WAIT_MS)
    assert not app.window.banner.isVisible()
    # What ran is back, without a restart policy.
    assert client.containers.inspect(ran)["State"]["Running"]
    # The list lives on over the restart: the event stream was made anew.
    identifier = run(client, "after", "sleep", "1000")
    qtbot.waitUntil(lambda: state(app, identifier) == "running", timeout=WAIT_MS)


def test_the_window_says_what_to_do_without_a_machine(qtbot: QtBot, tmp_path: Path) -> None:
    app = App(Desk(Home(tmp_path)), "default")
    qtbot.addWidget(app.window)
    app.start()
    qtbot.waitUntil(lambda: app.window.machine.state.text() == "No machine", timeout=WAIT_MS)
    assert app.window.machine.start_button.isEnabled()
    assert not app.window.machine.restart_button.isEnabled()
    app.window.close()
