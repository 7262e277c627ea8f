"""The agent's one SSH connection: made, watched, made again."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from desk.errors import HostKeyMismatch, SshError
from desk.ssh.endpoint import Endpoint
from desk.ssh.session import KeyRefused, Session

_log = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 8.0
_FIRST_BANNER_S = 2.0
_LONGEST_BANNER_S = 12.0
_HANDSHAKE_S = 12.0
_WAKE_CHECK_S = 3.0
_CLOSE_S = 1.0


class LinkDown(SshError):
    """There is no connection to the machine now."""


class Link:
    """Keeps a ``Session`` to ``endpoint`` alive from its own thread until ``close``.

    ``when_up(session)`` is called from that thread for each new connection; it must not block.
    """

    def __init__(self, endpoint: Endpoint, when_up: Callable[[Session], None]) -> None:
        self._endpoint = endpoint
        self._when_up = when_up
        self._changed = threading.Condition()
        self._session: Session | None = None
        self._closing = False
        self._hurry = False
        self._error: SshError | None = None
        self._failures = 0
        self._connections = 0
        self._thread = threading.Thread(target=self._keep, name="link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the connection and the thread; idempotent."""
        with self._changed:
            self._closing = True
            session = self._session
            self._changed.notify_all()
        if session is not None:
            session.close()
        self._thread.join(timeout=_CLOSE_S)  # a handshake that goes on ends with the process

    # --- for users of the connection ---------------------------------------------------------

    def session(self, timeout_s: float, *, urgent: bool = True) -> Session:
        """Return the living connection, waiting for it up to ``timeout_s`` seconds.

        An urgent caller cuts the pause before the next attempt short.

        Raises ``LinkDown`` with the last failure's reason, and at once where waiting cannot help
        (the wrong host key, a refused key).
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            if urgent:
                self._hurry = True
                self._changed.notify_all()
            while True:
                if self._session is not None and self._session.alive:
                    return self._session
                left_s = deadline - time.monotonic()
                hopeless = isinstance(self._error, HostKeyMismatch | KeyRefused)
                if self._closing or hopeless or left_s <= 0:
                    raise self._down()
                self._changed.wait(min(left_s, 0.25))

    @property
    def present(self) -> Session | None:
        """The living connection; ``None`` where one must be waited for."""
        session = self._session
        return session if session is not None and session.alive else None

    def _down(self) -> LinkDown:
        if self._closing:
            return LinkDown("its agent is stopping", hint="Start it with `desk machine start`.")
        if self._error is not None:
            return LinkDown(self._error.text, hint=self._error.hint)
        return LinkDown(
            f"no connection to {self._endpoint.host}:{self._endpoint.port} yet",
            hint="Try again in a moment.",
        )

    @property
    def connected_at(self) -> float | None:
        """When the present connection was made (seconds since 1970), ``None`` without one."""
        session = self.present
        return session.connected_at if session is not None else None

    @property
    def error(self) -> SshError | None:
        """Why the last connection was lost or not made; ``None`` while all is well."""
        with self._changed:
            return self._error

    @property
    def reconnects(self) -> int:
        """How many connections followed the first."""
        with self._changed:
            return max(0, self._connections - 1)

    def check(self) -> None:
        """Find out within seconds whether the connection still lives, and hurry to make a new one
        where it does not. Called after the host slept or changed networks."""
        with self._changed:
            session = self._session
            self._hurry = True
            self._failures = 0
            self._changed.notify_all()
        if session is not None:
            session.check(_WAKE_CHECK_S)

    def reconnect(self) -> None:
        """Drop the connection; a new one follows at once."""
        with self._changed:
            session = self._session
            self._hurry = True
            self._failures = 0
            self._changed.notify_all()
        if session is not None:
            session.close()

    # --- the thread ----------------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._closing:
            session = self._connect()
            if session is None:
                self._pause()
                continue
            self._when_up(session)
            session.ended.wait()
            session.close()
            with self._changed:
                self._session = None
                if not self._closing:
                    self._error = SshError(
                        "the SSH connection was lost", hint="Desk reconnects by itself."
                    )
                    _log.warning(
                        "the SSH connection was lost (%s); reconnecting", session.end_reason
                    )
                self._changed.notify_all()

    def _connect(self) -> Session | None:
        banner_s = min(_LONGEST_BANNER_S, _FIRST_BANNER_S * 1.5 ** min(self._failures, 10))
        try:
            session = Session.connect(
                self._endpoint, timeout_s=_HANDSHAKE_S, banner_timeout_s=banner_s
            )
        except SshError as error:
            with self._changed:
                if self._error is None or self._error.text != error.text:
                    _log.warning("cannot connect: %s. %s", error.text, error.hint)
                self._error = error
                self._failures += 1
                self._changed.notify_all()
            return None
        with self._changed:
            if self._closing:
                session.close()
                return None
            self._session = session
            self._error = None
            self._failures = 0
            self._hurry = False
            self._connections += 1
            count = self._connections
            self._changed.notify_all()
        _log.info(
            "connected to %s@%s:%d%s",
            self._endpoint.user,
            self._endpoint.host,
            self._endpoint.port,
            f" (connection {count})" if count > 1 else "",
        )
        return session

    def _pause(self) -> None:
        """Wait before the next attempt: longer each time, never the same for two agents."""
        longest_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(self._failures, 10))
        start = time.monotonic()
        deadline = start + longest_s * random.uniform(0.5, 1.0)
        with self._changed:
            while not self._closing:
                end = min(deadline, start + _FIRST_DELAY_S) if self._hurry else deadline
                left_s = end - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            self._hurry = False
