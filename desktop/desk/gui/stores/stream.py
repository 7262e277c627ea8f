"""Reads an endless stream of the engine in a thread and passes it on as signals."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from PySide6.QtCore import QObject, Signal, SignalInstance

from desk.errors import DeskError
from desk.gui.stores.ports import Stream

JOIN_DEADLINE_S = 10.0


class StreamReader(QObject):
    """One reader of one stream at a time; ``start`` ends an earlier one.

    Signals:
        item(object): one element of the stream.
        opened(): the engine answered; elements follow.
        ended(object): the stream is over; ``None`` or the ``DeskError`` that ended it. Not sent
            for a stream that ``stop`` ended.
    """

    item = Signal(object)
    opened = Signal()
    ended = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._current: _Reading | None = None

    def start(self, open_stream: Callable[[], Stream]) -> None:
        """Open a stream in a thread and pass its elements on."""
        self.stop()
        self._current = _Reading(self, open_stream)
        self._current.start()

    def stop(self) -> None:
        """End the reading and wait for its thread; idempotent."""
        if self._current is not None:
            self._current.stop()
            self._current = None


class _Reading(threading.Thread):
    def __init__(self, reader: StreamReader, open_stream: Callable[[], Stream]) -> None:
        super().__init__(name="stream-reader")
        self._reader = reader
        self._open = open_stream
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._stopped = False

    def run(self) -> None:
        error: DeskError | None = None
        try:
            stream = self._open()
            with self._lock:
                self._stream = stream
                if self._stopped:
                    stream.close()
                    return
            self._emit(self._reader.opened)
            for element in stream:
                if self._stopped:
                    return
                self._emit(self._reader.item, element)
        except DeskError as failure:
            error = failure
        if not self._stopped:
            self._emit(self._reader.ended, error)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            stream = self._stream
        if stream is not None:
            stream.close()
        if self is not threading.current_thread():
            self.join(JOIN_DEADLINE_S)

    @staticmethod
    def _emit(signal: SignalInstance, *arguments: object) -> None:
        # The window may be gone while the engine still talks.
        with contextlib.suppress(RuntimeError):
            signal.emit(*arguments)
