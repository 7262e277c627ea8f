"""Opening connections to the engine in the machine, by the way that its sshd allows.

Through the engine's socket, where sshd connects by itself: nothing runs in the machine for it.
Or through a command whose standard streams are the connection; starting that takes long in an
emulated machine, so a few are always started in advance.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass

from desk.agent.spec import EngineAccess
from desk.errors import SshError
from desk.ssh.channel import OpenFailure
from desk.ssh.session import ChannelError, Session
from desk.ssh.stream import ChannelStream

_log = logging.getLogger(__name__)

_WARM = 2
_COMMAND_S = 20.0
_GRACE_S = 7.0


class EngineDown(SshError):
    """The machine is reached, but nothing answers on the engine's socket in it."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """How engine connections are made now: ``way`` is ``socket``, ``command`` or ``unknown``."""

    way: str
    warm: int
    size: int


class EngineDoor:
    """Opens engine connections over the session it was given last; usable from any thread."""

    def __init__(self, access: EngineAccess) -> None:
        self._access = access
        self._changed = threading.Condition()
        self._session: Session | None = None
        self._by_command = False
        self._answered = False
        self._failing_since: float | None = None
        self._warm: deque[ChannelStream] = deque()
        self._closing = False
        self._filler = threading.Thread(target=self._fill, name="engine-pool", daemon=True)

    def start(self) -> None:
        self._filler.start()

    def close(self) -> None:
        """Close the waiting connections; idempotent."""
        with self._changed:
            self._closing = True
            self._session = None
            self._changed.notify_all()
        self._drop_warm()

    def use(self, session: Session) -> None:
        """Open connections over ``session`` from now on."""
        with self._changed:
            self._session = session
            self._by_command = not self._access.socket
            self._answered, self._failing_since = False, None
            self._changed.notify_all()
        self._drop_warm()

    def state(self) -> PoolState:
        with self._changed:
            known = self._answered or self._by_command
            way = ("command" if self._by_command else "socket") if known else "unknown"
            return PoolState(way, len(self._warm), _WARM if self._by_command else 0)

    def open(self, session: Session) -> ChannelStream:
        """Return a new connection to the engine over ``session``.

        Raises ``EngineDown`` where the engine's socket does not answer, else ``SshError``. A
        connection by command may also end at once; its standard error then says why.
        """
        if not self._by_command:
            try:
                stream = session.open_unix(self._access.socket)
            except ChannelError as error:
                if not self._try_command_after(session, error):
                    raise EngineDown(
                        f"the engine does not answer at {self._access.socket}",
                        hint="It may be starting; `desk machine status` shows how it is.",
                    ) from error
            else:
                self._answered, self._failing_since = True, None
                return stream
        return self._take(session) or session.open_exec(self._access.command, timeout_s=_COMMAND_S)

    def _try_command_after(self, session: Session, error: ChannelError) -> bool:
        """Decide whether the command may do what opening the socket could not."""
        if not self._access.command or not session.alive:
            return False
        if error.failure in (OpenFailure.NO_ANSWER, OpenFailure.RESOURCE_SHORTAGE):
            return False
        if error.failure is OpenFailure.CONNECT_FAILED and session.endpoint.user == "root":
            # Root may open every socket: most likely the engine is about to come. If it does not
            # (OpenSSH gives the same answer where forwarding is off), the command is asked, too.
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            return now - self._failing_since > _GRACE_S
        with self._changed:
            if session is self._session and not self._by_command:
                _log.info(
                    "the engine's socket is not to be had (%s); using `%s`",
                    error.text,
                    self._access.command,
                )
                self._by_command = True
                self._changed.notify_all()
        return True

    # --- connections in advance --------------------------------------------------------------

    def _take(self, session: Session) -> ChannelStream | None:
        """Return a waiting connection that is still good, and have another one made."""
        with self._changed:
            try:
                if session is not self._session:
                    return None
                while self._warm:
                    stream = self._warm.popleft()
                    if stream.at_rest:
                        return stream
                    stream.close()
                return None
            finally:
                self._changed.notify_all()

    def prune(self) -> None:
        """Replace waiting connections whose command has ended."""
        with self._changed:
            for stream in [stream for stream in self._warm if not stream.at_rest]:
                self._warm.remove(stream)
                stream.close()
            self._changed.notify_all()

    def _drop_warm(self) -> None:
        with self._changed:
            dropped = list(self._warm)
            self._warm.clear()
        for stream in dropped:
            stream.close()

    def _needs_more(self) -> bool:
        return self._by_command and self._session is not None and len(self._warm) < _WARM

    def _fill(self) -> None:
        pause_s = 0.0
        while True:
            with self._changed:
                if pause_s:
                    self._changed.wait(pause_s)
                while not self._closing and not self._needs_more():
                    self._changed.wait()
                if self._closing:
                    return
                session = self._session
            assert session is not None
            pause_s = 0.0 if self._warm_one(session) else 1.0

    def _warm_one(self, session: Session) -> bool:
        try:
            stream = session.open_exec(self._access.command, timeout_s=_COMMAND_S)
        except SshError as error:
            _log.info("no connection to the engine in advance: %s", error.text)
            return False
        with self._changed:
            if session is self._session and not self._closing:
                self._warm.append(stream)
                return True
        stream.close()
        return True


def last_words(stream: ChannelStream) -> str:
    """Return what an ended command said on standard error, in one line."""
    return " ".join(b"".join(stream.iter_stderr()).decode("utf-8", "replace").split())
