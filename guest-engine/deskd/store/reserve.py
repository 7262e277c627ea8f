"""The disk reserve: room below the data root that is the engine's own.

A container or a pull may fill the disk to its last byte. Listing, stopping and deleting need a few
blocks all the same, so the engine keeps a file of allocated blocks. It is given up in small pieces,
as they are needed, because whatever still writes to the disk takes what is left of a piece; and it
is taken back as soon as there is room. What makes new data is refused meanwhile (``check``).
"""

from __future__ import annotations

import errno
import os
import threading

from deskd.errors import ResourceExhausted, SystemFailure
from deskd.kernel.disk_space import writable_bytes
from deskd.record import Record

TYPE_CHECKING = False  # known to type checkers; see deskd.record
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

MIB = 1 << 20
MOST_BYTES = 64 * MIB
LEAST_BYTES = MIB
DISK_PARTS = 100  # the reserve is one of them …
SMALL_DISK_PARTS = 8  # … and on a disk where that is less than a MiB, at most one of these
PIECES = 64
LEAST_PIECE_BYTES = 32 << 10
BLOCK_BYTES = 4096
LOG_BYTES = 6 * MIB
"""What SQLite's write-ahead log takes before it is checkpointed, and half as much again."""

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS)


class Sizes(Record):
    """The sizes of one disk's reserve, in bytes: all of it, the piece that is given up at a time,
    where less than that is free, and what the database's log has allocated ahead."""

    whole: int
    piece: int
    log: int


def sizes_for(disk_bytes: int) -> Sizes:
    """Return the sizes for a file system of ``disk_bytes``."""
    least = min(LEAST_BYTES, disk_bytes // SMALL_DISK_PARTS)
    whole = _blocks(min(MOST_BYTES, max(disk_bytes // DISK_PARTS, least)))
    piece = min(whole, max(_blocks(whole // PIECES), LEAST_PIECE_BYTES))
    return Sizes(whole, piece, _blocks(min(LOG_BYTES, whole // 2)))


def takes_back(sizes: Sizes, held_bytes: int, free_bytes: int) -> int:
    """Return how much of the reserve to take now. Two pieces stay free, so that what has just been
    taken is not given up again a moment later."""
    missing = sizes.whole - held_bytes
    return max(0, min(missing, _blocks(free_bytes - 2 * sizes.piece)))


def _blocks(size_bytes: int) -> int:
    return size_bytes // BLOCK_BYTES * BLOCK_BYTES


class Reserve:
    """The reserve of one data root, in the file ``path``; its methods may be called from any
    thread. ``open`` it before anything else is written there, and ``close`` it at the end."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._root = os.path.dirname(path)
        self._lock = threading.Lock()
        self._fd = -1
        self._supported = True
        self._was_short = False

    def open(self) -> None:
        """Have the file, and a few free blocks on the disk; ``restore`` makes it whole.

        Raises ``SystemFailure`` where the file cannot be made.
        """
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SystemFailure(
                f"the reserve {self._path} cannot be made: {error.strerror}; choose another "
                "--data-root, or run deskd as root"
            ) from error
        self.make_room()

    def close(self) -> None:
        """Take back what the end of the engine has freed; idempotent."""
        if self._fd >= 0:
            self.restore()
            os.close(self._fd)
            self._fd = -1

    @property
    def sizes(self) -> Sizes:
        """The sizes for the disk as it is now: it may have grown."""
        found = os.statvfs(self._root)
        return sizes_for(found.f_blocks * found.f_frsize)

    @property
    def held_bytes(self) -> int:
        """How much room is kept now."""
        found = os.fstat(self._fd)
        return min(found.st_size, found.st_blocks * 512)

    @property
    def in_use(self) -> bool:
        """Whether the disk is so full that a part of the reserve is given up."""
        return self._supported and self.held_bytes < self.sizes.whole

    @property
    def is_full(self) -> bool:
        """Whether the disk has no room for new data."""
        return self.in_use or self._free() < self.sizes.piece

    def make_room(self) -> None:
        """Give up as much as it takes for a few blocks to be free."""
        while self._free() < self.sizes.piece and self.give_up():
            pass

    def with_room(self, work: Callable[[], T]) -> T:
        """Do a piece of ``work`` that takes a few blocks, again and again until it has them.

        Raises its ``OSError`` where the reserve is used up.
        """
        self.make_room()
        while True:
            try:
                return work()
            except OSError as error:
                if error.errno != errno.ENOSPC or not self.give_up():
                    raise

    def give_up(self) -> bool:
        """Give up one piece; return whether there was one."""
        with self._lock:
            held = self.held_bytes
            if not held:
                return False
            os.ftruncate(self._fd, max(0, held - self.sizes.piece))
            first, self._was_short = not self._was_short, True
        if first:
            _log(
                f"the disk of {self._root} is full: the engine works on its reserve; remove "
                "containers, images or volumes, or enlarge the disk"
            )
        return True

    def restore(self, spare_bytes: int = 0) -> None:
        """Take back what there is room for; ``spare_bytes`` stay free in any case."""
        from deskd.kernel.files import allocate  # after the first answer: it loads ctypes

        with self._lock:
            sizes, held = self.sizes, self.held_bytes
            wanted = takes_back(sizes, held, self._free() - spare_bytes)
            if not self._supported or not wanted:
                return
            try:
                allocate(self._fd, 0, held + wanted)
            except OSError as error:
                os.ftruncate(self._fd, held)  # a part may have been taken
                if error.errno in _UNSUPPORTED:
                    self._supported = False
                    _log(
                        f"the file system of {self._root} cannot reserve room (fallocate): a full "
                        "disk will keep the engine from deleting"
                    )
                return
            whole = held + wanted >= sizes.whole
            told, self._was_short = self._was_short, self._was_short and not whole
        if told and whole:
            _log(f"the disk of {self._root} has room again: the engine has its reserve back")

    def check(self) -> None:
        """Refuse to make new data on a full disk: it would take what deleting needs.

        Raises ``ResourceExhausted``.
        """
        if self.in_use:
            self.restore()
        if self.is_full:
            raise ResourceExhausted(
                f"no space left on the disk of the data root {self._root}: remove containers, "
                "images or volumes (`docker system prune`), or enlarge the disk"
            )

    def _free(self) -> int:
        return writable_bytes(self._root)


def _log(sentence: str) -> None:
    import logging  # not before it is needed: the reserve is opened before the first answer

    logging.getLogger(__name__).warning("%s", sentence)
