"""The app's one task runner: blocking work in threads, results back in the GUI's thread."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from PySide6.QtCore import QObject, QRunnable, QThreadPool, Signal, Slot

from desk.errors import DeskError

T = TypeVar("T")
log = logging.getLogger(__name__)

MAX_THREADS = 8
CLOSE_DEADLINE_MS = 10_000


class _Outcome(QObject):
    """Carries a task's end to the thread that started it.

    Signals:
        done(object): the task's result.
        failed(object): the ``DeskError`` it raised.
    """

    done = Signal(object)
    failed = Signal(object)


class _Task(QRunnable):
    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self.setAutoDelete(False)  # the runner keeps it until its outcome was delivered
        self.work = work
        self.outcome = _Outcome()

    def run(self) -> None:
        try:
            result = self.work()
        except DeskError as error:
            self.outcome.failed.emit(error)
        except Exception as error:
            log.exception("a task failed unexpectedly")
            self.outcome.failed.emit(
                DeskError(
                    f"something in the app failed: {error}",
                    hint="Start `desk gui` from a terminal to see the details.",
                )
            )
        else:
            self.outcome.done.emit(result)


class TaskRunner(QObject):
    """Runs blocking calls beside the event loop.

    ``run`` returns at once; exactly one of ``on_done`` and ``on_error`` is called later, in the
    thread of this object. After ``close`` no callback is called any more.

    Signals:
        busy_changed(bool): whether any task is running.
    """

    busy_changed = Signal(bool)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(MAX_THREADS)
        self._running: set[_Task] = set()
        self._closed = False

    def run(
        self,
        work: Callable[[], T],
        on_done: Callable[[T], None],
        on_error: Callable[[DeskError], None],
    ) -> None:
        """Call ``work`` in a thread; hand its result or its ``DeskError`` back here."""
        if self._closed:
            return
        task = _Task(work)
        self._running.add(task)
        relay = _Relay(self, task, on_done, on_error)
        task.outcome.done.connect(relay.done)
        task.outcome.failed.connect(relay.failed)
        if len(self._running) == 1:
            self.busy_changed.emit(True)
        self._pool.start(task)

    def finished(self, task: _Task) -> bool:
        """Forget ``task``; return whether its callback may still be called."""
        self._running.discard(task)
        if not self._running:
            self.busy_changed.emit(False)
        return not self._closed

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def close(self) -> bool:
        """Drop waiting tasks, wait for running ones; return whether all ended in time."""
        self._closed = True
        self._pool.clear()
        ended = self._pool.waitForDone(CLOSE_DEADLINE_MS)
        self._running.clear()
        return ended


class _Relay(QObject):
    """Lives in the runner's thread, so that Qt queues the worker's signals into that thread."""

    def __init__(
        self,
        runner: TaskRunner,
        task: _Task,
        on_done: Callable[[Any], None],
        on_error: Callable[[DeskError], None],
    ) -> None:
        super().__init__(runner)
        self._runner = runner
        self._task = task
        self._on_done = on_done
        self._on_error = on_error

    @Slot(object)
    def done(self, result: object) -> None:
        if self._end():
            self._on_done(result)

    @Slot(object)
    def failed(self, error: object) -> None:
        if self._end() and isinstance(error, DeskError):
            self._on_error(error)

    def _end(self) -> bool:
        self.deleteLater()
        return self._runner.finished(self._task)
