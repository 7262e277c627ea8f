"""A monitor's directory below the exec root: its socket, who it is, and how its process ended."""

from __future__ import annotations

import contextlib
import os
import socket

from deskd.domain.process import Exit
from deskd.kernel import process
from deskd.layout import ExecRoot
from deskd.runtime import records
from deskd.runtime.socket_names import short_name


class MonitorDirectory:
    """The directory of one monitor, which is the only one to write to it."""

    def __init__(self, exec_root: ExecRoot, key: str) -> None:
        self._key = key
        self.path = exec_root.process(key)
        self._socket = exec_root.monitor_socket(key)
        self._exit = exec_root.exit_record(key)

    def prepare(self) -> None:
        """Make it; what an earlier run of the same container left in it goes."""
        try:
            os.mkdir(self.path, 0o700)
        except FileNotFoundError:
            os.makedirs(self.path, 0o700)
        except FileExistsError:
            for path in (self._socket, self._exit):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def listen(self) -> socket.socket:
        """Make the monitor's socket; return it, not blocking."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with short_name(self._socket) as name:
            listener.bind(name)
        os.chmod(self._socket, 0o600)
        listener.listen(64)
        listener.setblocking(False)
        return listener

    def write_state(self, pid: int, started_at_ns: int) -> None:
        """Write down who the monitor, this process, is and what it watches."""
        own = os.getpid()
        state = records.MonitorState(
            key=self._key,
            monitor_pid=own,
            start_ticks=process.start_ticks(own) or 0,
            boot_id=process.boot_id(),
            pid=pid,
            started_at_ns=started_at_ns,
        )
        records.write_state(self.path, state)

    def write_exit(self, ended: Exit) -> None:
        """Put the end on record; nobody can connect any more."""
        os.unlink(self._socket)
        records.write_exit(self._exit, ended)

    def remove(self) -> None:
        """Remove it, also while the engine is clearing it away in this moment."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.path):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self.path}/{name}")
            os.rmdir(self.path)
