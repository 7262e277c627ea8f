"""Being told when a control group has run out of memory, while it lives on.

Version 1 signals an eventfd (the kernel's admin-guide/cgroup-v1/memory, "OOM control"), version 2
changes ``memory.events``, which inotify(7) tells.
"""

from __future__ import annotations

import os

from deskd.kernel.cgroup import Cgroup, files
from deskd.kernel.cgroup.v1 import CgroupV1
from deskd.kernel.inotify import IN_MODIFY, Watch


class OomWatch:
    """``fileno`` becomes readable; ``happened`` says then whether there is something to tell.

    Raises ``OSError`` where the group has gone or the kernel cannot tell. ``close`` it.
    """

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self._kills = cgroup.oom_kills()
        if isinstance(cgroup, CgroupV1):
            self._control = f"{cgroup.directory('memory')}/memory.oom_control"
            self._event: _Event | Watch = _Event(cgroup.directory("memory"), self._control)
        else:
            self._control = f"{cgroup.path}/memory.events"
            self._event = Watch(self._control, IN_MODIFY)

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
