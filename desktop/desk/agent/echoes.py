"""What containers did to shared files, so that this computer's own changes are told from it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

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

    def note(self, path: str, found: os.stat_result | None) -> None:
        """Remember how the machine left its ``path``; ``None``: it is gone."""
        with self._lock:
            self._left[path] = _state(found)
            self._left.move_to_end(path)
            while len(self._left) > _MOST_PATHS:
                self._left.popitem(last=False)

    def is_one(self, path: str, found: os.stat_result | None) -> bool:
        """Tell whether ``path`` is as the machine left it."""
        with self._lock:
            return path in self._left and self._left[path] == _state(found)


def _state(found: os.stat_result | None) -> _State:
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ctime_ns)
