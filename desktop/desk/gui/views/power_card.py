"""The machine page's part about the battery: what this computer runs on, and what counts then."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QLabel,
    QVBoxLayout,
    QWidget,
)

from desk.agent.power import Source
from desk.agent.spec import AUTO
from desk.gui.stores.power import PowerStore
from desk.gui.views.parts import button
from desk.machine.power import LABEL, MachinePower
from desk.machine.power_options import LEAST_CPUS, SOURCES

_STEP_CPUS, _DECIMALS = 0.25, 2
_MOST_CPUS = 256.0
_FIRST_CPUS = 1.0
_CHOICES = {AUTO: "as this computer tells", "mains": "always mains", "battery": "always battery"}
_SOURCES = {
    Source.MAINS: "On mains",
    Source.BATTERY: "On battery",
    Source.UNKNOWN: "Source not known",
}


class PowerCard(QWidget):
    """Shows ``PowerStore``; asks it to change the policy when Apply is clicked."""

    def __init__(self, store: PowerStore, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._store = store
        self._shown: tuple[float | None, str] | None = None
        self._working = False
        self.source = QLabel("…")
        self.source.setObjectName("figure")
        self.in_force = QLabel("")
        self.in_force.setObjectName("subtitle")
        self.in_force.setTextFormat(Qt.TextFormat.PlainText)
        self.in_force.setWordWrap(True)
        self.limits = QCheckBox("On battery, containers together use at most")
        self.cpus = QDoubleSpinBox()
        self.cpus.setRange(LEAST_CPUS, _MOST_CPUS)
        self.cpus.setDecimals(_DECIMALS)
        self.cpus.setSingleStep(_STEP_CPUS)
        self.cpus.setValue(_FIRST_CPUS)
        self.cpus.setSuffix(" CPUs")
        self.cpus.setAccessibleName("CPUs on battery")
        self.choice = QComboBox()
        self.choice.setAccessibleName("Power source")
        for source in SOURCES:
            self.choice.addItem(_CHOICES[source], source)
        self.apply_button = button("Apply", self._apply)
        self._lay_out()
        self.limits.toggled.connect(self._show_possible)
        self.cpus.valueChanged.connect(self._show_possible)
        self.choice.currentIndexChanged.connect(self._show_possible)
        store.changed.connect(self._on_power)
        store.working_changed.connect(self._on_working)
        self._show_possible()

    def _lay_out(self) -> None:
        row = QHBoxLayout()
        for widget in (self.limits, self.cpus, QLabel("Source:"), self.choice):
            row.addWidget(widget)
        row.addStretch(1)
        row.addWidget(self.apply_button)
        hint = QLabel(f"Containers with the label {LABEL} are paused on battery.")
        hint.setObjectName("subtitle")
        hint.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.source)
        column.addWidget(self.in_force)
        column.addLayout(row)
        column.addWidget(hint)

    def _wished(self) -> tuple[float | None, str]:
        cpus = self.cpus.value() if self.limits.isChecked() else None
        return (None if cpus is None else round(cpus, _DECIMALS)), str(self.choice.currentData())

    def _apply(self) -> None:
        cpus, source = self._wished()
        self._store.set(battery_cpus="" if cpus is None else f"{cpus:g}", source=source)

    def _on_power(self, found: MachinePower | None) -> None:
        if found is None:
            self.source.setText("—")
            self.in_force.setText("This machine does not follow this computer's battery.")
            self._shown = None
            self._show_possible()
            return
        charge = found.host.charge_percent
        self.source.setText(_SOURCES[found.source] + ("" if charge is None else f" · {charge:g}%"))
        self.in_force.setText(in_force_text(found))
        cpus = found.battery_cpus
        settings = (None if cpus is None else round(cpus, _DECIMALS), found.chosen)
        if settings != self._shown:  # what a person is about to choose stays otherwise
            self._shown = settings
            self.limits.setChecked(cpus is not None)
            if cpus is not None:
                self.cpus.setValue(cpus)
            self.choice.setCurrentIndex(max(0, self.choice.findData(found.chosen)))
        self._show_possible()

    def _on_working(self, working: bool) -> None:
        self._working = working
        self._show_possible()

    def _show_possible(self, *_: object) -> None:
        possible = self._shown is not None and not self._working
        self.limits.setEnabled(possible)
        self.cpus.setEnabled(possible and self.limits.isChecked())
        self.choice.setEnabled(possible)
        self.apply_button.setEnabled(possible and self._wished() != self._shown)


def in_force_text(found: MachinePower) -> str:
    """Say in one line what containers do less now, and why."""
    now = found.now
    if now is None:
        return "The machine does not run."
    if now.problem:
        return f"{now.problem[:1].upper()}{now.problem[1:]}."
    count = f"at most {now.cpus:g} CPU{'' if now.cpus == 1 else 's'}" if now.cpus else "all CPUs"
    parts = [count]
    parts.append(f"paused: {', '.join(now.frozen)}" if now.frozen else "nothing is paused for it")
    if now.spared:
        parts.append(f"running on battery because somebody started it: {', '.join(now.spared)}")
    return f"Containers have {'; '.join(parts)}."
