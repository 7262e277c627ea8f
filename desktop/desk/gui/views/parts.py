"""Small parts that several pages are made of."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QAbstractItemModel, QSortFilterProxyModel, Qt
from PySide6.QtWidgets import (
    QAbstractItemView,
    QFrame,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QStackedWidget,
    QTableView,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from desk.errors import DeskError
from desk.gui.models.rows import SORT_ROLE


class Banner(QFrame):
    """One message above the pages: an error with its remedy, or a note; closed by the person."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("banner")
        self._label = QLabel()
        self._label.setWordWrap(True)
        self._label.setTextFormat(Qt.TextFormat.PlainText)
        self._label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        close = QToolButton()
        close.setText("✕")
        close.setAutoRaise(True)
        close.setAccessibleName("Close the message")
        close.clicked.connect(self.hide)
        row = QHBoxLayout(self)
        row.addWidget(self._label, 1)
        row.addWidget(close, 0, Qt.AlignmentFlag.AlignTop)
        self.hide()

    @property
    def text(self) -> str:
        """What the banner says."""
        return self._label.text()

    def show_error(self, error: DeskError) -> None:
        """Show what went wrong and what to do."""
        sentence = error.text[:1].upper() + error.text[1:]
        self._show("error", f"{sentence}\n{error.hint}".strip())

    def show_note(self, sentence: str) -> None:
        """Show that something went well."""
        self._show("note", sentence)

    def _show(self, kind: str, text: str) -> None:
        self.setProperty("kind", kind)
        self.style().unpolish(self)
        self.style().polish(self)
        self._label.setText(text)
        self.show()


class FilteredTable(QStackedWidget):
    """A sortable, filterable table over a model, or a sentence while there is nothing to show."""

    def __init__(
        self, model: QAbstractItemModel, empty: str, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.proxy = QSortFilterProxyModel(self)
        self.proxy.setSourceModel(model)
        self.proxy.setSortRole(SORT_ROLE)
        self.proxy.setSortCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        self.proxy.setFilterCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        self.proxy.setFilterKeyColumn(-1)
        self.table = QTableView()
        self.table.setModel(self.proxy)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSortingEnabled(True)
        self.table.setShowGrid(False)
        self.table.setWordWrap(False)
        self.table.verticalHeader().hide()
        header = self.table.horizontalHeader()
        header.setHighlightSections(False)
        header.setStretchLastSection(True)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        self._empty = QLabel(empty)
        self._empty.setObjectName("empty")
        self._empty.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._empty.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.addWidget(self._empty)
        self.addWidget(self.table)
        for signal in (model.rowsInserted, model.rowsRemoved, model.modelReset):
            signal.connect(self._choose)
        self._choose()

    def set_empty_text(self, sentence: str) -> None:
        """Say something else while there are no rows."""
        self._empty.setText(sentence)

    def set_widths(self, *widths_px: int) -> None:
        """Set the first columns' widths; the last column takes what is left."""
        for column, width in enumerate(widths_px):
            self.table.setColumnWidth(column, width)

    def selected_rows(self) -> list[int]:
        """Return the numbers of the selected rows in the source model, in order."""
        indexes = self.table.selectionModel().selectedRows()
        return sorted(self.proxy.mapToSource(index).row() for index in indexes)

    def _choose(self) -> None:
        self.setCurrentIndex(1 if self.proxy.sourceModel().rowCount() else 0)


def page_title(title: str) -> QLabel:
    """Make the heading of a page."""
    label = QLabel(title)
    label.setObjectName("title")
    return label


def button(text: str, call: Callable[[], None], *, tool_tip: str = "") -> QPushButton:
    """Make a push button that calls ``call``."""
    made = QPushButton(text)
    made.setToolTip(tool_tip)
    made.clicked.connect(lambda _checked=False: call())
    return made


def card(caption: str, content: QWidget) -> QFrame:
    """Frame ``content`` below a small caption."""
    frame = QFrame()
    frame.setObjectName("card")
    column = QVBoxLayout(frame)
    column.setContentsMargins(16, 12, 16, 14)
    label = QLabel(caption)
    label.setObjectName("caption")
    column.addWidget(label)
    column.addWidget(content)
    return frame
