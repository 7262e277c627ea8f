"""What an engine does before its other modules are loaded: it claims its places and listens.

Clients have their first answer then, and whatever else they ask waits for the engine on its
connection. Imports next to nothing, for the same reason.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from contextlib import ExitStack

from deskd.api.front import Front
from deskd.api.listeners import open_listeners, remove_file
from deskd.errors import Conflict, SystemFailure, Unsupported
from deskd.kernel import probe
from deskd.layout import DataRoot, ExecRoot
from deskd.settings import Settings
from deskd.store.reserve import Reserve

TYPE_CHECKING = False  # known to type checkers; see deskd.record
if TYPE_CHECKING:
    from typing import Any


class Opening:
    """Everything claimed for one engine, from ``open`` until ``close``.

    ``lacks`` are sentences on what the kernel lacks, and ``stop_asked`` tells whether SIGTERM or
    SIGINT has come: nobody else listens to them until the event loop does.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self.listeners: list[socket.socket] = []
        self.lacks: list[str] = []
        self.stop_asked = False

    def open(self) -> None:
        """Look at the kernel and ``claim``. Needs ``close`` also where it raises.

        With ``--userns-remap`` only a whole engine knows its data root, and it claims by itself.
        Raises ``Unsupported`` for a kernel that can start no container, and what ``claim`` raises.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            former = signal.signal(number, self._ask_to_stop)
            self._stack.callback(signal.signal, number, former)
        self.lacks = check_kernel()
        if not self._settings.userns_remap:
            self.claim(self._settings)

    def claim(self, settings: Settings) -> None:
        """Claim the roots, listen, and answer greetings.

        Raises ``Conflict`` for places that another engine has, and what ``open_listeners`` raises.
        """
        data, execution = DataRoot(settings.data_root), ExecRoot(settings.exec_root)
        make_directory(data.path)
        lock = take_lock(data.lock)
        self._stack.callback(os.close, lock)
        self.reserve = Reserve(data.reserve)
        self._stack.callback(self.reserve.close)
        self.reserve.open()  # on a full disk, what follows has room then
        self.reserve.with_room(lambda: sign_lock(lock))
        for path in (data.containers, data.volumes, data.temporary,
                     execution.path, execution.processes):  # fmt: skip
            make_directory(path)
        self.listeners = open_listeners(settings, execution, self._stack)
        pidfile = settings.pidfile or execution.pidfile
        _write_pidfile(pidfile)
        self._stack.callback(remove_file, pidfile)
        # A TLS handshake needs more than is loaded yet; such clients wait for the engine.
        self.front = Front(
            [
                listener for listener in self.listeners
                if listener.family == socket.AF_UNIX or not settings.tls.enabled
            ]
        )  # fmt: skip
        self._stack.callback(self.front.close)
        self.front.start()

    def close(self) -> None:
        """Give everything up again."""
        self._stack.close()

    def _ask_to_stop(self, _number: int, _frame: Any) -> None:
        self.stop_asked = True


def check_kernel() -> list[str]:
    """Refuse a kernel that can start no container; return sentences on what else it lacks.

    Raises ``Unsupported`` naming the option.
    """
    lacks = []
    for feature in probe.missing():
        if feature.essential:
            raise Unsupported(
                f"{feature.hint()}: run the engine on a kernel that has it, as Desk's own "
                "machines do (`desk up`)"
            )
        lacks.append(feature.hint())
    return lacks


def make_directory(path: str) -> None:
    """Make a directory of the engine's. Raises ``SystemFailure`` that says what to do."""
    try:
        os.makedirs(path, mode=0o710, exist_ok=True)
    except OSError as error:
        raise SystemFailure(
            f"the directory {path} cannot be made: {error.strerror}; choose another "
            "--data-root or --exec-root, or run deskd as root"
        ) from error


def _write_pidfile(path: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        raise SystemFailure(f"the pidfile {path} cannot be written: {error.strerror}") from error


def take_lock(path: str) -> int:
    """Make sure that no other engine uses this data root; the descriptor holds the lock, and
    ``sign_lock`` says in it who does. Takes no room on the disk where the file is there.

    Raises ``Conflict`` naming the other engine.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise Conflict(
            f"another engine (process {holder or 'unknown'}) uses the data root "
            f"{os.path.dirname(path)}; stop it or choose another --data-root"
        ) from None
    os.ftruncate(descriptor, 0)
    return descriptor


def sign_lock(descriptor: int) -> None:
    """Write down whose the lock is."""
    os.write(descriptor, f"{os.getpid()}\n".encode())
