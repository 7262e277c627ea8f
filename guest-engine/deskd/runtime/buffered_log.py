"""``mode=non-blocking``: a buffer between the program and its log.

A disk that is slow does not slow the program down; what finds the buffer full is lost, which is
what the mode is asked for.
"""

from __future__ import annotations

import threading
from collections import deque

from deskd.runtime.json_log import JsonLog


class BufferedLog:
    """Writes to ``log`` in a thread of its own, which starts with the first output."""

    def __init__(self, log: JsonLog, limit_bytes: int) -> None:
        self._log = log
        self._limit_bytes = limit_bytes
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._size_bytes = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, stream: str, data: bytes) -> None:
        """Take output, or drop it where the buffer is full; never waits for the disk."""
        with self._changed:
            if self._waiting and self._size_bytes + len(data) > self._limit_bytes:
                return
            self._waiting.append((stream, data))
            self._size_bytes += len(data)
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                stream, data = self._waiting.popleft()
                self._size_bytes -= len(data)
            self._log.write(stream, data)

    def close(self) -> None:
        """Write what is in the buffer, and close."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._log.close()

    def settle(self) -> None:
        """Wait for work that goes on after the end."""
        self._log.settle()
