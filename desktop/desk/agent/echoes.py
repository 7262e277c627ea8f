"""What containers did to shared files, so that this computer's own changes are told from it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

_MOST_PATHS = 20_000

_State = tuple[int, int, int] | None


class Echoes:
    """Remembers how the machine left each path. A change that is seen in a file which is still so
    came from there, and telling the machine of it would go round in circles: a program that builds
    in a container when its sources change would never rest. Usable from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: OrderedDict[str, _State] = OrderedDict()
        self._changing: Counter[str] = Counter()

    @contextlib.contextmanager
    def changing(self, *paths: str) -> Iterator[None]:
        """Say that the machine changes ``paths`` for the time of the block, which notes how."""
        with self._lock:
            self._changing.update(paths)
        try:
            yield
        finally:
            with self._lock:
                self._changing.subtract(paths)
                for path in paths:
                    if not self._changing[path]:
                        del self._changing[path]

    def note(self, path: str, found: os.stat_result | None) -> None:
        """Remember how the machine left its ``path``; ``None``: it is gone."""
        with self._lock:
            self._left[path] = _state(found)
            self._left.move_to_end(path)
            while len(self._left) > _MOST_PATHS:
                self._left.popitem(last=False)

    def is_one(self, path: str, look: Callable[[], os.stat_result | None]) -> bool | None:
        """Tell whether ``path``, at which ``look`` looks, is as the machine left it; ``None`` while
        the machine changes it and nobody can know."""
        with self._lock:
            if path in self._changing:
                return None
            known = path in self._left
            left = self._left.get(path)
        is_so = _state(look()) == left
        with self._lock:
            if path in self._changing or (path in self._left, self._left.get(path)) != (
                known,
                left,
            ):
                return None
        return known and is_so


def _state(found: os.stat_result | None) -> _State:
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ctime_ns)
