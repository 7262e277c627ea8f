"""Brings committed changes to the disk soon, without anybody waiting for it.

In WAL mode with ``synchronous=NORMAL`` a commit is safe from a crash of the engine but not from a
loss of power (https://www.sqlite.org/wal.html, "Performance Considerations"): a container that was
removed could be back. Waiting for the disk at each commit would cost every start of a container
several milliseconds, so the log is brought to the disk within ``DELAY_S`` seconds instead.
"""

from __future__ import annotations

import contextlib
import os
import threading

DELAY_S = 0.5


class Flusher:
    """Flushes one database's write-ahead log. ``note`` after each commit; ``close`` at the end."""

    def __init__(self, database: str) -> None:
        self._log = f"{database}-wal"
        self._noted = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self) -> None:
        """Something was committed: flush it soon. The caller holds the database's lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="database-flush", daemon=True)
            self._thread.start()
        self._noted.set()

    def close(self) -> None:
        """Flush what is left and end the thread; idempotent."""
        if self._thread is None:
            return
        self._closing.set()
        self._noted.set()
        self._thread.join()
        self._thread = None

    def _run(self) -> None:
        closing = False
        while not closing:
            self._noted.wait()
            self._closing.wait(DELAY_S)
            self._noted.clear()  # before the flush: what is committed during it wants another
            # Asked after ``clear``, which may have taken back the note of an end just ordered.
            closing = self._closing.is_set()
            self.flush()

    def flush(self) -> None:
        """Bring what was committed to the disk now; from any thread."""
        # Without a log there is nothing to flush: SQLite has moved it into the database.
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
