"""The machine page: state, memory, address, and one-click restart."""

from __future__ import annotations

from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import (
    QApplication,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QVBoxLayout,
    QWidget,
)

from desk.gui.models.listing import memory_text
from desk.gui.stores.machine import MachineStore
from desk.gui.stores.power import PowerStore
from desk.gui.views.parts import button, card, page_title
from desk.gui.views.power_card import PowerCard
from desk.machine.model import MachineStatus, State

NO_MACHINE = "No machine yet. Start makes one named default."
MEBIBYTE = 2**20


class MachinePage(QWidget):
    """Shows ``MachineStore``; asks it to start, stop and restart. Shows ``PowerStore`` in a part of
    its own, which is asked for while the page is seen."""

    def __init__(
        self, store: MachineStore, power: PowerStore, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._store = store
        self._power = power
        self.power = PowerCard(power)
        self._status: MachineStatus | None = None
        self._working = False
        self.state = QLabel("…")
        self.state.setObjectName("figure")
        self.details = QLabel("")
        self.details.setObjectName("subtitle")
        self.memory = QLabel("—")
        self.memory.setObjectName("figure")
        self.memory_bar = QProgressBar()
        self.memory_bar.setTextVisible(False)
        self.memory_caption = QLabel("")
        self.memory_caption.setObjectName("subtitle")
        self.url = QLineEdit()
        self.url.setReadOnly(True)
        self.step = QLabel("")
        self.step.setObjectName("subtitle")
        self.start_button = button("Start", store.start)
        self.stop_button = button("Stop", store.stop, tool_tip="Ends all containers first")
        self.restart_button = button("Restart", store.restart)
        self._lay_out()
        store.changed.connect(self._on_status)
        store.step.connect(self._on_step)
        store.working_changed.connect(self._on_working)
        self._show_possible()

    def _lay_out(self) -> None:
        bar = QHBoxLayout()
        bar.addWidget(page_title("Machine"))
        bar.addStretch(1)
        for each in (self.start_button, self.stop_button, self.restart_button):
            bar.addWidget(each)
        grid = QGridLayout()
        grid.setSpacing(14)
        grid.addWidget(card("State", self._column(self.state, self.details)), 0, 0)
        grid.addWidget(
            card(
                "Memory the host pays",
                self._column(self.memory, self.memory_bar, self.memory_caption),
            ),
            0,
            1,
        )
        grid.addWidget(card("Power", self.power), 1, 0, 1, 2)
        grid.addWidget(card("Engine address (DOCKER_HOST)", self._url_row()), 2, 0, 1, 2)
        grid.setColumnStretch(0, 1)
        grid.setColumnStretch(1, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(20, 16, 20, 16)
        column.setSpacing(12)
        column.addLayout(bar)
        column.addLayout(grid)
        column.addWidget(self.step)
        column.addStretch(1)

    @staticmethod
    def _column(*widgets: QWidget) -> QWidget:
        holder = QWidget()
        column = QVBoxLayout(holder)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in widgets:
            column.addWidget(widget)
        column.addStretch(1)
        return holder

    def _url_row(self) -> QWidget:
        holder = QWidget()
        row = QHBoxLayout(holder)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.url, 1)
        row.addWidget(button("Copy", lambda: QApplication.clipboard().setText(self.url.text())))
        return holder

    def _on_status(self, status: MachineStatus | None) -> None:
        self._status = status
        if status is None:
            self.state.setText("No machine")
            self.details.setText(NO_MACHINE)
            self.url.clear()
        else:
            self.state.setText(status.state.value)
            parts = [status.name, f"driver {status.driver}"]
            if status.cpus:
                parts.append(f"{status.cpus} CPU{'s' if status.cpus != 1 else ''}")
            if status.engine_version:
                parts.append(f"engine {status.engine_version}")
            self.details.setText(status.error or " · ".join(parts))
            self.url.setText(status.url)
        self._show_memory(status)
        self._show_possible()
        if self.isVisible():
            self._power.refresh()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        self._power.refresh()
        super().showEvent(event)

    def _show_memory(self, status: MachineStatus | None) -> None:
        used = status.host_memory_bytes if status else None
        if status is None or used is None:
            self.memory.setText("—")
            self.memory_bar.setValue(0)
            self.memory_caption.setText(
                "" if status is None else "This driver does not tell what the host pays."
            )
            return
        ceiling = status.memory_mib * MEBIBYTE
        self.memory.setText(memory_text(used))
        self.memory_bar.setRange(0, max(1, status.memory_mib))
        self.memory_bar.setValue(min(status.memory_mib, used // MEBIBYTE))
        self.memory_caption.setText(f"of at most {memory_text(ceiling)}" if ceiling else "")

    def _on_step(self, sentence: str) -> None:
        self.step.setText(sentence)

    def _on_working(self, working: bool) -> None:
        self._working = working
        if not working:
            self.step.clear()
        self._show_possible()

    def _show_possible(self) -> None:
        state = self._status.state if self._status else State.STOPPED
        idle = not self._working
        self.start_button.setEnabled(idle and state not in (State.RUNNING, State.STARTING))
        self.stop_button.setEnabled(idle and state in (State.RUNNING, State.ERROR))
        self.restart_button.setEnabled(
            idle and self._status is not None and state in (State.RUNNING, State.ERROR)
        )
