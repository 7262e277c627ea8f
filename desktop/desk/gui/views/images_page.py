"""The images page: a list, removal, and loading from a file."""

from __future__ import annotations

from PySide6.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QLineEdit,
    QMessageBox,
    QVBoxLayout,
    QWidget,
)

from desk.gui.models.listing import IMAGE_COLUMNS, ImageRow
from desk.gui.models.rows import RowsModel
from desk.gui.stores.images import ImagesStore
from desk.gui.views.parts import FilteredTable, button, page_title

EMPTY = (
    "No images yet.\n\nLoad one from a file, or try in a terminal:   desk import rootfs.tar mine"
)
ARCHIVES = (
    "Image archives and root file systems (*.tar *.tar.gz *.tgz *.tar.xz *.tar.bz2 *.tar.zst)"
)


class ImagesPage(QWidget):
    """Shows ``ImagesStore``; asks it to remove what is selected and to load files."""

    def __init__(self, store: ImagesStore, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._store = store
        self.model = RowsModel[ImageRow](
            IMAGE_COLUMNS, lambda row: f"{row.id} {row.repository}:{row.tag}", self
        )
        self.list = FilteredTable(self.model, EMPTY)
        self.list.set_widths(250, 110, 140, 140)
        self.filter = QLineEdit()
        self.filter.setPlaceholderText("Filter by repository, tag or ID")
        self.filter.setClearButtonEnabled(True)
        self.filter.textChanged.connect(self.list.proxy.setFilterFixedString)
        self.load_button = button(
            "Load…", self._load, tool_tip="Load an image archive or import a root file system"
        )
        self.remove_button = button("Remove", self._remove)
        bar = QHBoxLayout()
        bar.addWidget(page_title("Images"))
        bar.addStretch(1)
        bar.addWidget(self.filter, 2)
        bar.addWidget(self.load_button)
        bar.addWidget(self.remove_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(20, 16, 20, 16)
        column.setSpacing(12)
        column.addLayout(bar)
        column.addWidget(self.list, 1)
        store.changed.connect(self._on_rows)
        store.loading_changed.connect(self._on_loading)
        self.list.table.selectionModel().selectionChanged.connect(self._show_possible)
        self._show_possible()

    def selected(self) -> list[ImageRow]:
        """Return the selected rows."""
        return [self.model.row(number) for number in self.list.selected_rows()]

    def _on_rows(self, rows: list[ImageRow]) -> None:
        self.model.replace(rows)
        self._show_possible()

    def _on_loading(self, loading: bool) -> None:
        self.load_button.setEnabled(not loading)
        self.load_button.setText("Loading…" if loading else "Load…")

    def _show_possible(self) -> None:
        self.remove_button.setEnabled(bool(self.selected()))

    def _load(self) -> None:
        file, _ = QFileDialog.getOpenFileName(self, "Load an image", "", ARCHIVES)
        if file:
            self._store.load(file)

    def _remove(self) -> None:
        rows = self.selected()
        what = rows[0].reference if len(rows) == 1 else f"{len(rows)} images"
        answer = QMessageBox.question(self, "Remove images", f"Remove {what}?")
        if answer == QMessageBox.StandardButton.Yes:
            for row in rows:
                self._store.remove(row.reference)
