"""Being told when a control group has run out of memory, while it lives on.

Version 1 signals an eventfd (the kernel's admin-guide/cgroup-v1/memory, "OOM control"), version 2
changes ``memory.events``, whose readers can poll(2) for that.
"""

from __future__ import annotations

import contextlib
import os
import select

from deskd.kernel.cgroup import Cgroup, files
from deskd.kernel.cgroup.v1 import CgroupV1


class OomWatch:
    """``fileno`` becomes readable; ``happened`` says then whether there is something to tell.

    Raises ``OSError`` where the group has gone or the kernel cannot tell. ``close`` it.
    """

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._kills = cgroup.oom_kills()
        if isinstance(cgroup, CgroupV1):
            self._control = f"{cgroup.directory('memory')}/memory.oom_control"
            self._event: _Event | _Changes = _Event(cgroup.directory("memory"), self._control)
        else:
            self._control = f"{cgroup.path}/memory.events"
            self._event = _Changes(self._control)

    def fileno(self) -> int:
        return self._event.fileno()

    def happened(self) -> bool:
        """Take note of what was told. Version 1 also tells of the group's removal, version 2 of
        every change of a counter."""
        self._event.drain()
        if isinstance(self._event, _Event):
            return os.path.exists(self._control)
        kills = self._cgroup.oom_kills()
        more, self._kills = kills > self._kills, kills
        return more

    def close(self) -> None:
        self._event.close()


class _Event:
    """An eventfd(2) that version 1 signals."""

    def __init__(self, directory: str, control: str) -> None:
        watched = os.open(control, os.O_RDONLY | os.O_CLOEXEC)
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            files.write(f"{directory}/cgroup.event_control", f"{self._descriptor} {watched}")
        except OSError:
            self.close()
            raise
        finally:
            os.close(watched)

    def fileno(self) -> int:
        return self._descriptor

    def drain(self) -> None:
        """Take the count back; never waits."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Changes:
    """An epoll(7) descriptor, which becomes readable where a file's readers are told by POLLPRI.

    inotify would tell too, but of its instances a host may give root 128 in all.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._file, select.EPOLLPRI)
        self.drain()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def drain(self) -> None:
        """Read the file as it is now; the next change is told anew."""
        try:
            os.pread(self._file, 4096, 0)
        except OSError:  # the group has gone, which is told without end
            with contextlib.suppress(FileNotFoundError):
                self._epoll.unregister(self._file)

    def close(self) -> None:
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._file)
