"""Reading json-file logs: one JSON object a line, ``{"log", "stream", "time", "attrs"}``.

The monitor writes them and rotates ``NAME`` to ``NAME.1``, ``NAME.2`` …, oldest highest; the
rotated ones may be packed (``NAME.1.gz``). A reader
keeps its file open, so that a rotation under its hands loses no line.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import msgspec

from deskd.logs.files import LogFile, open_all

log = logging.getLogger(__name__)

BLOCK_BYTES = 256 * 1024
_STREAM_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2}


class Entry(msgspec.Struct, frozen=True):
    """One logged piece of output; it ends with a newline unless it was cut."""

    log: str = ""
    stream: str = "stdout"
    time: str = ""
    attrs: dict[str, str] = {}

    @property
    def stream_number(self) -> int:
        """The number in a multiplexed frame's header."""
        return _STREAM_NUMBERS.get(self.stream, 1)


_DECODER = msgspec.json.Decoder(Entry)


def parse_line(line: bytes) -> Entry | None:
    """Parse one line; a damaged one (cut by a power failure) is None."""
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        log.warning("a damaged log line of %d bytes is left out", len(line))
        return None


class Reader:
    """Reads a log from a starting point on, over rotated files, and goes on as it grows.

    Not for use by two threads at once. ``close`` it.
    """

    def __init__(self, path: str, *, tail: int | None = None) -> None:
        """``tail`` starts that many lines before the end; None starts with the oldest line."""
        self._path = path
        self._rest = b""
        self._waiting: list[LogFile] = []
        self._current: LogFile | None = None
        files = open_all(path)
        if tail is not None:
            files = _seek_tail(files, tail)
        if files:
            self._current, self._waiting = files[0], files[1:]

    def close(self) -> None:
        """Close all files; idempotent."""
        for file in [self._current, *self._waiting]:
            if file is not None:
                file.close()
        self._current, self._waiting = None, []

    def read_lines(self) -> list[bytes]:
        """Return the next complete lines; an empty list means that there are none now."""
        while True:
            if self._current is None and not self._reopen():
                return []
            block = self._current.read(BLOCK_BYTES) if self._current else b""
            if block:
                lines = (self._rest + block).split(b"\n")
                self._rest = lines.pop()
                if lines:
                    return lines
                continue
            if not self._advance():
                return []

    def _advance(self) -> bool:
        """Go on to the next file where this one is finished; return whether there is more."""
        if self._current is None:
            return False
        if self._waiting:
            self._current.close()
            self._current, self._rest = self._waiting.pop(0), b""
            return True
        try:
            newest = os.stat(self._path)
        except FileNotFoundError:
            return False
        if newest.st_ino == self._current.inode and not self._current.packed:
            if newest.st_size < self._current.tell():
                self._current.seek(0)  # truncated by hand, as people do
                self._rest = b""
                return newest.st_size > 0
            return False
        # Rotated, perhaps more than once since the last look: find the files after mine.
        files = open_all(self._path)
        matching = [i for i, file in enumerate(files) if file.is_same(self._current)]
        start = matching[-1] if matching else -1
        for file in files[: start + 1]:
            file.close()
        # A line may have come between my last read and the rotation.
        final = self._current.read()
        if final:
            self._waiting = files[start + 1 :] + self._waiting
            self._current.seek(-len(final), os.SEEK_CUR)
            return True
        self._current.close()
        self._current, self._rest = None, b""
        self._waiting = files[start + 1 :]
        return self._reopen()

    def _reopen(self) -> bool:
        if not self._waiting:
            self._waiting = open_all(self._path)
        if not self._waiting:
            return False
        self._current = self._waiting.pop(0)
        return True


def _seek_tail(files: list[LogFile], tail: int) -> list[LogFile]:
    """Position at ``tail`` lines before the end; return the files from there on."""
    if tail <= 0:
        for file in files[:-1]:
            file.close()
        for file in files[-1:]:
            file.seek(0, os.SEEK_END)
        return files[-1:]
    missing = tail
    for index in range(len(files) - 1, -1, -1):
        missing = _seek_lines_back(files[index], missing)
        if missing <= 0:
            for file in files[:index]:
                file.close()
            return files[index:]
    return files


def _seek_lines_back(file: LogFile, count: int) -> int:
    """Move to ``count`` lines before the file's end; return how many lines were missing."""
    position = file.seek(0, os.SEEK_END)
    wanted = count + 1  # the newline before the first wanted line
    while position > 0:
        size = min(BLOCK_BYTES, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        if wanted == count + 1 and not block.endswith(b"\n"):
            wanted -= 1  # an unfinished last line
        found = block.count(b"\n")
        if found >= wanted:
            offset = _nth_from_end(block, wanted)
            file.seek(position + offset + 1)
            return 0
        wanted -= found
    file.seek(0)
    return wanted - 1


def _nth_from_end(block: bytes, count: int) -> int:
    offset = len(block)
    for _ in range(count):
        offset = block.rindex(b"\n", 0, offset)
    return offset


def entries(lines: list[bytes]) -> Iterator[Entry]:
    """Parse lines, leaving damaged ones out."""
    for line in lines:
        entry = parse_line(line) if line else None
        if entry is not None:
            yield entry
