"""`desk gui`: puts stores, pages and the rest of Desk together, and runs the window."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from functools import cached_property

from PySide6.QtCore import QObject, QTimer
from PySide6.QtWidgets import QApplication

from desk.compose import Desk
from desk.engine.client import EngineClient
from desk.errors import DeskError
from desk.gui.gateway import DeskMachine, DeskPower, EngineContainers, EngineImages
from desk.gui.stores.containers import ContainersStore
from desk.gui.stores.images import ImagesStore
from desk.gui.stores.machine import MachineStore
from desk.gui.stores.power import PowerStore
from desk.gui.tasks import TaskRunner
from desk.gui.views.main_window import MainWindow

SIGNAL_POLL_MS = 500


class App(QObject):
    """Everything behind one window; ``close`` ends its threads, timers and connections."""

    def __init__(self, desk: Desk, machine: str) -> None:
        super().__init__()
        self._desk = desk
        self._name = machine
        self.tasks = TaskRunner(self)
        engine = EngineContainers(lambda: self._client)
        self.containers = ContainersStore(engine, self.tasks, self)
        self.images = ImagesStore(EngineImages(lambda: self._client), self.tasks, self)
        self.machine = MachineStore(DeskMachine(desk, machine), self.tasks, self)
        self.power = PowerStore(DeskPower(desk, machine), self.tasks, self)
        self.window = MainWindow(
            self.containers,
            self.images,
            self.machine,
            self.power,
            engine.logs,
            on_close=self.close,
        )

    @cached_property
    def _client(self) -> EngineClient:
        # The page that needs a running machine says so; nothing starts one behind its back.
        client = self._desk.client(self._name, start=False, progress=lambda _: None)
        client.connection.bin_group = "1"  # each removal can be undone by itself
        return client

    def start(self) -> None:
        """Show the window and begin to follow the engine and the machine."""
        self.window.show()
        self.machine.watch()
        self.containers.watch()

    def close(self) -> None:
        """End everything that runs beside the window; idempotent."""
        self.machine.close()
        self.containers.close()
        self.tasks.close()
        if "_client" in self.__dict__:
            self._client.close()


def main(arguments: Sequence[str] | None = None, *, machine: str = "") -> int:
    """Run the app for ``machine`` (the active one) until its window is closed; return the exit
    code. ``arguments`` are Qt's."""
    desk = Desk()
    try:
        machine = machine or desk.settings.active_machine
    except DeskError as error:
        sys.stderr.write(f"desk: {error.text}\n{error.hint}\n".rstrip() + "\n")
        return error.exit_code
    application = QApplication(["desk", *(sys.argv[1:] if arguments is None else arguments)])
    application.setApplicationName("Desk")
    application.setStyle("Fusion")
    app = App(desk, machine)
    app.start()
    # Ctrl-C in the terminal closes the window; Python sees signals only between its own steps.
    signal.signal(signal.SIGINT, lambda *_: app.window.close())
    wake = QTimer(interval=SIGNAL_POLL_MS)
    wake.timeout.connect(lambda: None)
    wake.start()
    return application.exec()


if __name__ == "__main__":
    sys.exit(main())
