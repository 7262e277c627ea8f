"""The machine in use: its state, its memory, and its power."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QObject, QTimer, Signal

from desk.errors import DeskError
from desk.gui.stores.ports import Machine
from desk.gui.tasks import TaskRunner
from desk.machine.model import MachineStatus

POLL_MS = 2000


class MachineStore(QObject):
    """Knows the machine's state, starts, stops and restarts it.

    Signals:
        changed(object): the new ``MachineStatus``, or ``None`` where no machine exists.
        failed(object): a ``DeskError`` of an action the person asked for.
        step(str): what a start or restart is doing now.
        working_changed(bool): whether a start, stop or restart is under way.
    """

    changed = Signal(object)
    failed = Signal(object)
    step = Signal(str)
    working_changed = Signal(bool)

    def __init__(self, machine: Machine, tasks: TaskRunner, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._machine = machine
        self._tasks = tasks
        self._asking = False
        self._poll = QTimer(self)
        self._poll.setInterval(POLL_MS)
        self._poll.timeout.connect(self.refresh)

    def watch(self) -> None:
        """Ask for the state now and every two seconds until ``close``."""
        self._poll.start()
        self.refresh()

    def refresh(self) -> None:
        """Ask for the state, unless an earlier question is still open."""
        if not self._asking:
            self._asking = True
            self._tasks.run(self._machine.status, self._on_status, self._on_status_failed)

    def start(self) -> None:
        """Start the machine."""
        self._work(lambda: self._machine.start(self.step.emit))

    def stop(self) -> None:
        """Stop the machine, its containers first."""
        self._work(self._machine.stop)

    def restart(self) -> None:
        """Restart the machine."""
        self._work(lambda: self._machine.restart(self.step.emit))

    def close(self) -> None:
        """End the polling."""
        self._poll.stop()

    def _on_status(self, status: MachineStatus | None) -> None:
        self._asking = False
        self._poll.setInterval(POLL_MS)
        self.changed.emit(status)

    def _on_status_failed(self, error: DeskError) -> None:
        self._asking = False
        self.failed.emit(error)
        self._poll.setInterval(5 * POLL_MS)  # a lasting fault is told now and then, not for ever

    def _work(self, work: Callable[[], None]) -> None:
        def done(_: object = None) -> None:
            self.working_changed.emit(False)
            self.refresh()

        def failed(error: DeskError) -> None:
            done()
            self.failed.emit(error)

        self.working_changed.emit(True)
        self._tasks.run(work, done, failed)
