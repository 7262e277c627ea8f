"""The app's window: a sidebar, the pages, and one place for messages."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QCloseEvent, QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QListWidget,
    QMainWindow,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from desk.gui.stores.containers import ContainersStore
from desk.gui.stores.images import ImagesStore
from desk.gui.stores.machine import MachineStore
from desk.gui.stores.ports import Stream
from desk.gui.stores.power import PowerStore
from desk.gui.views.containers_page import ContainersPage
from desk.gui.views.images_page import ImagesPage
from desk.gui.views.machine_page import MachinePage
from desk.gui.views.parts import Banner
from desk.machine.model import MachineStatus

SIDEBAR_PX = 190
START_SIZE = QSize(1040, 680)


class MainWindow(QMainWindow):
    """Puts the pages together and shows the stores' errors; ``on_close`` ends the app's work."""

    def __init__(
        self,
        containers: ContainersStore,
        images: ImagesStore,
        machine: MachineStore,
        power: PowerStore,
        logs: Callable[[str], Stream],
        on_close: Callable[[], None],
    ) -> None:
        super().__init__()
        self.setWindowTitle("Desk")
        self.resize(START_SIZE)
        self._on_close = on_close
        self.banner = Banner()
        self.containers = ContainersPage(containers, logs)
        self.images = ImagesPage(images)
        self.machine = MachinePage(machine, power)
        self.pages = QStackedWidget()
        self.sidebar = QListWidget()
        self.sidebar.setObjectName("sidebar")
        self.sidebar.setFixedWidth(SIDEBAR_PX)
        self.sidebar.setAccessibleName("Pages")
        pages = {"Containers": self.containers, "Images": self.images, "Machine": self.machine}
        for row, (title, page) in enumerate(pages.items()):
            self.sidebar.addItem(title)
            self.pages.addWidget(page)
            shortcut = QShortcut(QKeySequence(f"Ctrl+{row + 1}"), self)
            shortcut.activated.connect(functools.partial(self.sidebar.setCurrentRow, row))
        self.sidebar.currentRowChanged.connect(self.pages.setCurrentIndex)
        self.sidebar.setCurrentRow(0)
        self.footer = QLabel("…")
        self.footer.setObjectName("footer")
        self.footer.setFixedWidth(SIDEBAR_PX)
        self._lay_out()
        style = resources.files("desk.gui.resources").joinpath("style.qss")
        self.setStyleSheet(style.read_text(encoding="utf-8"))
        for store in (containers, images, machine, power):
            store.failed.connect(self.banner.show_error)
        images.told.connect(self.banner.show_note)
        containers.images_changed.connect(images.refresh)
        containers.online_changed.connect(lambda online: images.refresh() if online else None)
        machine.changed.connect(self._on_machine)

    def _lay_out(self) -> None:
        brand = QLabel("Desk")
        brand.setObjectName("brand")
        brand.setFixedWidth(SIDEBAR_PX)
        side = QVBoxLayout()
        side.setSpacing(0)
        side.addWidget(brand)
        side.addWidget(self.sidebar, 1)
        side.addWidget(self.footer)
        main = QVBoxLayout()
        main.setContentsMargins(0, 0, 0, 0)
        holder = QVBoxLayout()
        holder.setContentsMargins(20, 12, 20, 0)
        holder.addWidget(self.banner)
        main.addLayout(holder)
        main.addWidget(self.pages, 1)
        whole = QWidget()
        row = QHBoxLayout(whole)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(0)
        row.addLayout(side)
        row.addLayout(main, 1)
        self.setCentralWidget(whole)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        self.setCursor(Qt.CursorShape.WaitCursor)
        self.containers.close_streams()
        self._on_close()
        super().closeEvent(event)

    def _on_machine(self, status: MachineStatus | None) -> None:
        self.footer.setText(
            "No machine" if status is None else f"{status.name}: {status.state.value}"
        )
