"""The images of the machine in use."""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal

from desk.errors import DeskError
from desk.gui.models.listing import ImageRow, image_rows
from desk.gui.stores.ports import Images
from desk.gui.tasks import TaskRunner


class ImagesStore(QObject):
    """Knows all images; removes and loads them.

    Signals:
        changed(list): the new ``ImageRow`` list.
        failed(object): a ``DeskError`` of an action the person asked for.
        told(str): a sentence about an action that ended well.
        loading_changed(bool): whether an archive is being loaded.
    """

    changed = Signal(list)
    failed = Signal(object)
    told = Signal(str)
    loading_changed = Signal(bool)

    def __init__(self, engine: Images, tasks: TaskRunner, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._engine = engine
        self._tasks = tasks

    def refresh(self) -> None:
        """Ask for the list. An engine that does not answer is the containers store's to tell."""
        self._tasks.run(self._list, self.changed.emit, lambda _: None)

    def remove(self, reference: str) -> None:
        """Remove a tag, or an untagged image."""

        def done(_: None) -> None:
            self.refresh()

        self._tasks.run(lambda: self._engine.remove(reference), done, self.failed.emit)

    def load(self, file: str) -> None:
        """Load an image archive or root file system from ``file``."""

        def done(sentence: str) -> None:
            self.loading_changed.emit(False)
            self.told.emit(sentence)
            self.refresh()

        def failed(error: DeskError) -> None:
            self.loading_changed.emit(False)
            self.failed.emit(error)

        self.loading_changed.emit(True)
        self._tasks.run(lambda: self._engine.load(file), done, failed)

    def _list(self) -> list[ImageRow]:
        return [row for answer in self._engine.list() for row in image_rows(answer)]
