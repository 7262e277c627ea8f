"""The containers page: a live list, and the selected container's logs below it."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QItemSelection, QItemSelectionModel, Qt
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QMessageBox, QSplitter, QVBoxLayout, QWidget

from desk.errors import DeskError
from desk.gui.models.listing import CONTAINER_COLUMNS, ContainerRow
from desk.gui.models.rows import RowsModel
from desk.gui.stores.containers import ContainersStore
from desk.gui.stores.ports import Stream
from desk.gui.stores.stream import StreamReader
from desk.gui.views.log_view import LogView
from desk.gui.views.parts import FilteredTable, button, page_title

EMPTY = "No containers yet.\n\nTry in a terminal:   desk run -d -p 8080:80 nginx"
OFFLINE = "The engine does not answer.\n\nStart the machine on the Machine page."


class ContainersPage(QWidget):
    """Shows ``ContainersStore``; asks it to start, stop and remove what is selected.

    ``logs`` opens the live output of a container.
    """

    def __init__(
        self,
        store: ContainersStore,
        logs: Callable[[str], Stream],
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._store = store
        self._open_logs = logs
        self._shown_logs = ""
        self._logs_ended = False
        self._acting: frozenset[str] = frozenset()
        self._reader = StreamReader(self)
        self.model = RowsModel[ContainerRow](CONTAINER_COLUMNS, lambda row: row.id, self)
        self.list = FilteredTable(self.model, EMPTY)
        self.list.set_widths(190, 170, 200, 130)
        self.list.table.sortByColumn(4, Qt.SortOrder.DescendingOrder)
        self.log_view = LogView()
        self.filter = QLineEdit()
        self.filter.setPlaceholderText("Filter by name, image, status or port")
        self.filter.setClearButtonEnabled(True)
        self.filter.textChanged.connect(self.list.proxy.setFilterFixedString)
        self.start_button = button("Start", self._start)
        self.stop_button = button("Stop", self._stop)
        self.remove_button = button("Remove", self._remove)
        self._lay_out()
        store.changed.connect(self._on_rows)
        store.acting_changed.connect(self._on_acting)
        store.online_changed.connect(self._on_online)
        self.list.table.selectionModel().selectionChanged.connect(self._on_selection)
        self._reader.item.connect(self.log_view.append)
        self._reader.ended.connect(self._on_logs_ended)
        self._show_possible()

    def selected(self) -> list[ContainerRow]:
        """Return the selected containers."""
        return [self.model.row(number) for number in self.list.selected_rows()]

    def select(self, container_id: str) -> None:
        """Select one container by its ID."""
        number = self.model.row_of(container_id)
        if number is not None:
            index = self.list.proxy.mapFromSource(self.model.index(number, 0))
            self.list.table.selectionModel().select(
                index,
                QItemSelectionModel.SelectionFlag.ClearAndSelect
                | QItemSelectionModel.SelectionFlag.Rows,
            )

    def close_streams(self) -> None:
        """End the log stream."""
        self._reader.stop()

    def _lay_out(self) -> None:
        bar = QHBoxLayout()
        bar.addWidget(page_title("Containers"))
        bar.addStretch(1)
        bar.addWidget(self.filter, 2)
        for each in (self.start_button, self.stop_button, self.remove_button):
            bar.addWidget(each)
        splitter = QSplitter(Qt.Orientation.Vertical)
        splitter.addWidget(self.list)
        splitter.addWidget(self.log_view)
        splitter.setStretchFactor(0, 3)
        splitter.setStretchFactor(1, 2)
        splitter.setChildrenCollapsible(False)
        column = QVBoxLayout(self)
        column.setContentsMargins(20, 16, 20, 16)
        column.setSpacing(12)
        column.addLayout(bar)
        column.addWidget(splitter, 1)

    def _on_rows(self, rows: list[ContainerRow]) -> None:
        self.model.replace(rows)
        self._show_possible()
        self._follow_selection()

    def _on_online(self, online: bool) -> None:
        self.list.set_empty_text(EMPTY if online else OFFLINE)
        if not online:
            self.model.replace([])
            self._show_possible()

    def _on_acting(self, acting: frozenset[str]) -> None:
        self._acting = acting
        self._show_possible()

    def _on_selection(self, _selected: QItemSelection, _gone: QItemSelection) -> None:
        self._show_possible()
        self._follow_selection()

    def _show_possible(self) -> None:
        rows = [row for row in self.selected() if row.id not in self._acting]
        self.start_button.setEnabled(any(not row.running for row in rows))
        self.stop_button.setEnabled(any(row.running for row in rows))
        self.remove_button.setEnabled(bool(rows))

    def _follow_selection(self) -> None:
        rows = self.selected()
        if len(rows) != 1:
            return
        row = rows[0]
        restarted = self._logs_ended and row.running
        if row.id == self._shown_logs and not restarted:
            return
        self._shown_logs, self._logs_ended = row.id, False
        self.log_view.begin(f"Logs of {row.name}")
        self._reader.start(lambda: self._open_logs(row.id))

    def _on_logs_ended(self, error: DeskError | None) -> None:
        self._logs_ended = True
        self.log_view.end(error.text if error else "the container has ended")

    def _start(self) -> None:
        for row in self.selected():
            if not row.running:
                self._store.start(row.id)

    def _stop(self) -> None:
        for row in self.selected():
            if row.running:
                self._store.stop(row.id)

    def _remove(self) -> None:
        rows = self.selected()
        running = [row.name for row in rows if row.running]
        what = rows[0].name if len(rows) == 1 else f"{len(rows)} containers"
        question = f"Remove {what}? Changes inside are lost; volumes stay."
        if running:
            question += f"\n\nStill running, and ended first: {', '.join(running)}"
        answer = QMessageBox.question(self, "Remove containers", question)
        if answer == QMessageBox.StandardButton.Yes:
            for row in rows:
                self._store.remove(row.id, force=row.running)
