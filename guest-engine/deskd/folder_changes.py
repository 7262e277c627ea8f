"""``deskd tell-changes PLACE...``: changes made on the laptop, for watchers in this machine.

A file system whose server is on the laptop tells inotify's watchers of nothing that is done there.
The agent, which sees it, sends for each change a text with a NUL at its end: the time of the last
change in nanoseconds, the size, both as the laptop has them, and the path here. Setting the time to
what it is makes the kernel tell of a change, and nothing else of the file changes. What programs of
this machine wrote was told to its watchers already: fanotify says which files that are, and a file
that is as they left it is passed over. The first bytes on standard output are ``GREETING``.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Sequence

from deskd.kernel.file_watching import FileState, WriteWatch, file_state, set_mtime

GREETING = b"desk changes 1\n"
_INPUT, _OUTPUT = 0, 1
_READ_BYTES = 1 << 16
_MOST_FILES = 20_000
# What belongs together is told together: a program that writes a file piece by piece makes the
# kernel open it for us once, not for each piece.
_GATHER_S = 0.005


def tell_changes(places: Sequence[str]) -> int:
    """Tell of what standard input says until it ends; return the exit code."""
    try:
        teller = _Teller(places)
    except OSError as error:
        sys.stderr.write(f"deskd: {error.filename} cannot be watched: {error.strerror}\n")
        return 1
    os.write(_OUTPUT, GREETING)
    teller.run()
    return 0


class _Teller:
    def __init__(self, places: Sequence[str]) -> None:
        self._watch = WriteWatch()
        for place in places:
            self._watch.add(place)
        self._own: dict[int, FileState] = {}  # of files that were written here, the oldest first
        self._unread = b""

    def run(self) -> None:
        poll = select.poll()
        poll.register(_INPUT, select.POLLIN)
        poll.register(_OUTPUT, 0)  # hang-ups only: nobody reads any more
        poll.register(self._watch, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if _OUTPUT in ready:
                return
            if self._watch.fileno() in ready:
                time.sleep(_GATHER_S)
            self._learn()
            if _INPUT in ready and not self._read():
                return

    def _learn(self) -> None:
        for state in self._watch.written():
            self._own.pop(state.inode, None)
            self._own[state.inode] = state
        while len(self._own) > _MOST_FILES:
            del self._own[next(iter(self._own))]

    def _read(self) -> bool:
        piece = os.read(_INPUT, _READ_BYTES)
        *texts, self._unread = (self._unread + piece).split(b"\0")
        for text in texts:
            mtime_ns, size, path = text.split(b" ", 2)
            self._tell(int(mtime_ns), int(size), os.fsdecode(path))
        return bool(piece)

    def _tell(self, mtime_ns: int, size: int, path: str) -> None:
        try:
            found = file_state(path)
            own = self._own.get(found.inode)
            if own is None or (own.mtime_ns, own.size) != (mtime_ns, size):
                set_mtime(path, found.mtime_ns)
        except OSError:
            return  # gone meanwhile, or not to be changed
