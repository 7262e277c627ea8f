"""The power policy of the machine in use: what counts on battery, and what is in force."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QObject, Signal

from desk.errors import DeskError
from desk.gui.stores.ports import Power
from desk.gui.tasks import TaskRunner
from desk.machine.power import MachinePower


class PowerStore(QObject):
    """Knows the power policy and changes it.

    Signals:
        changed(object): a ``MachinePower``, or ``None`` for a machine that follows no battery.
        failed(object): a ``DeskError`` of a change that the person asked for.
        working_changed(bool): whether a change is under way.
    """

    changed = Signal(object)
    failed = Signal(object)
    working_changed = Signal(bool)

    def __init__(self, power: Power, tasks: TaskRunner, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._power = power
        self._tasks = tasks
        self._busy = False

    def refresh(self) -> None:
        """Ask for the policy, unless an earlier question or a change is still open."""
        if not self._busy:
            self._busy = True
            # An engine that does not answer is the machine page's state, and told there.
            self._tasks.run(self._power.look, self._on_found, lambda _error: self._end())

    def set(self, *, battery_cpus: str, source: str) -> None:
        """Change the policy; an empty number of CPUs is no limit."""
        self.working_changed.emit(True)
        self._busy = True
        self._tasks.run(self._setting(battery_cpus, source), self._on_set, self._on_set_failed)

    def _setting(self, battery_cpus: str, source: str) -> Callable[[], MachinePower]:
        return lambda: self._power.set(battery_cpus=battery_cpus, source=source)

    def _end(self) -> None:
        self._busy = False

    def _on_found(self, found: MachinePower | None) -> None:
        self._end()
        self.changed.emit(found)

    def _on_set(self, found: MachinePower) -> None:
        self.working_changed.emit(False)
        self._on_found(found)

    def _on_set_failed(self, error: DeskError) -> None:
        self.working_changed.emit(False)
        self._end()
        self.failed.emit(error)
        self.refresh()
