"""Watching shared folders here, so that watchers in containers learn of changes made here.

Through a network file system the machine's kernel sees only what is done in the machine. So the
machine is told which files changed, and touches them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from desk.errors import DeskError

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent
    from watchdog.observers.api import BaseObserver

_log = logging.getLogger(__name__)

_GATHER_S = 0.05
_MOST_AT_ONCE = 500
_KINDS = ("created", "modified", "deleted", "moved")


class FolderChanges:
    """Calls ``tell`` with the machine's names of what changed in the watched folders, from a thread
    of its own that lives while something is watched. ``is_echo`` says of a name whether the machine
    knows of its state, which the function that it is given returns (``None`` where it is gone), or
    ``None`` where that cannot be said at this moment."""

    def __init__(
        self,
        is_echo: Callable[[str, Callable[[], os.stat_result | None]], bool | None],
        tell: Callable[[Sequence[str]], None],
    ) -> None:
        self.error = ""
        self._is_echo = is_echo
        self._tell = tell
        self._lock = threading.Lock()
        self._watched: dict[str, str] = {}
        self._observer: BaseObserver | None = None
        self._changed: dict[str, None] = {}
        self._some = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, folders: Mapping[str, str]) -> None:
        """Watch exactly these files and folders: paths here, with their names in the machine."""
        wanted = {
            place: name
            for place, name in folders.items()
            if not any(place != other and _is_in(place, other) for other in folders)
        }
        if wanted == self._watched or self._closing.is_set():
            return
        self._stop_observing()
        self._watched = wanted
        if wanted:
            self._observe(wanted)

    def close(self) -> None:
        """Watch nothing any more; idempotent."""
        self._closing.set()
        self._stop_observing()
        self._some.set()
        if self._thread is not None:
            self._thread.join(timeout=3.0)

    def _observe(self, wanted: Mapping[str, str]) -> None:
        from watchdog.events import FileSystemEventHandler
        from watchdog.observers import Observer

        note = self._note

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                note(event)

        handler = Handler()
        self._observer = Observer()
        self.error = ""
        self._observer.start()
        for place in wanted:
            whole = Path(place).is_dir()
            try:
                self._observer.schedule(
                    handler, place if whole else str(Path(place).parent), recursive=whole
                )
            except OSError as error:
                self.error = (
                    f"changes in {place} are not told to containers: {error.strerror or error}"
                )
                _log.warning("%s", self.error)
        if self._thread is None:
            self._thread = threading.Thread(target=self._pass_on, name="changes", daemon=True)
            self._thread.start()

    def _stop_observing(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join(timeout=3.0)

    def _note(self, event: FileSystemEvent) -> None:
        # A directory changes with what is in it, which has an event of its own.
        if event.event_type not in _KINDS or (
            event.is_directory and event.event_type == "modified"
        ):
            return
        with self._lock:
            for path in (event.src_path, event.dest_path):
                if path:
                    self._changed[os.fsdecode(path)] = None
        self._some.set()

    def _pass_on(self) -> None:
        while True:
            self._some.wait()
            # What belongs together comes together, and what the machine did is noted by then.
            if self._closing.wait(_GATHER_S):
                return
            self._some.clear()
            with self._lock:
                changed, self._changed = list(self._changed), {}
            names = list(dict.fromkeys(filter(None, map(self._name_to_tell, changed))))
            for start in range(0, len(names), _MOST_AT_ONCE):
                try:
                    self._tell(names[start : start + _MOST_AT_ONCE])
                except DeskError as error:
                    _log.info("the machine is not told of changes: %s", error.text)

    def _name_to_tell(self, path: str) -> str:
        """Return the machine's name of what is to be touched there; empty for nothing."""
        watched = next((pair for pair in self._watched.items() if _is_in(path, pair[0])), None)
        if watched is None:
            return ""
        name = watched[1] + path[len(watched[0]) :].replace(os.sep, "/").rstrip("/")
        echo = self._is_echo(name, lambda: _look(path))
        if echo is None:
            self._note_again(path)
        if echo is not False:
            return ""
        # What is gone cannot be touched; the folder that it was in can.
        return name if _look(path) is not None else name.rpartition("/")[0]

    def _note_again(self, path: str) -> None:
        with self._lock:
            self._changed[path] = None
        self._some.set()


def _look(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _is_in(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
