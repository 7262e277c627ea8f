"""One agent per machine: a locked file that names the process which holds the lock.

The lock is what counts; it goes with the process, however that ends. A file without a lock is
stale and is taken over.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from desk.errors import Conflict

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# Windows locks bytes, and locked bytes cannot be read by others: lock one behind the text.
_LOCKED_BYTE = 1 << 20
# Whoever looks whether the lock is held has it for a moment; that is no agent.
_LOOK_S = 0.5
_POLL_S = 0.01


class PidFile:
    """The lock file at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock and write our process ID, or raise ``Conflict`` naming the holder."""
        deadline = time.monotonic() + _LOOK_S
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not _try_lock(descriptor):
                os.close(descriptor)
                if time.monotonic() < deadline:
                    time.sleep(_POLL_S)
                    continue
                holder = self.holder()
                raise Conflict(
                    f"an agent for machine {self._path.parent.name} runs already"
                    + (f" (process {holder})" if holder else ""),
                    hint="Use it, or stop it first with `desk machine stop`.",
                )
            if _same_file(descriptor, self._path):
                break
            os.close(descriptor)  # its holder removed it between our open and our lock
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Remove the file and give the lock up; idempotent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):  # Windows does not remove an open file
                self._path.unlink(missing_ok=True)
            os.close(descriptor)

    def holder(self) -> int | None:
        """Return the process ID of the lock's holder, ``None`` where nobody holds it."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            if _try_lock(descriptor, shared=True):
                return None
            text = os.read(descriptor, 32).decode("ascii", "replace").strip()
            return int(text) if text.isdecimal() else None
        finally:
            os.close(descriptor)

    def is_held(self) -> bool:
        """Whether a living process holds the lock."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(descriptor, shared=True)
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock the file if that can be done at once; those who only look share, so that they do not
    take each other for an agent (Windows has no such lock)."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    if sys.platform == "win32":
        return True  # an open file cannot be removed there
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
