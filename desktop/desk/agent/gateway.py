"""The engine's socket on the host: every connection to it becomes one to the engine.

Where the engine cannot be reached, the client gets an answer of the Engine API's own form, so that
any Docker client prints the sentence.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable

from desk.agent.door import EngineDoor, EngineDown, last_words
from desk.agent.link import Link, LinkDown
from desk.errors import SshError
from desk.ssh.session import Session
from desk.ssh.stream import ChannelStream

_log = logging.getLogger(__name__)

PATIENCE_S = 10.0
_SHORT_PATIENCE_S = 1.5
_RETRY_S = 0.2
_REQUEST_S = 2.0
_LONGEST_HEAD_BYTES = 64 * 1024


class EngineGateway:
    """Serves connections to the engine of ``machine``."""

    def __init__(self, machine: str, link: Link, door: EngineDoor) -> None:
        self._machine = machine
        self._link = link
        self._door = door
        self._lock = threading.Lock()
        self._down_since: float | None = None

    def serve(self, local: socket.socket, ended: Callable[[], None]) -> None:
        """Copy between ``local`` and the engine until both are done, then close it and call
        ``ended``; returns at once."""
        threading.Thread(
            target=self._begin, args=(local, ended), name="connection", daemon=True
        ).start()

    def _begin(self, local: socket.socket, ended: Callable[[], None]) -> None:
        try:
            session, remote = self._open()
        except SshError as error:
            try:
                answer_503(local, self._sentence(error))
            finally:
                ended()
            return
        session.relay(local, remote, ended=ended, when_silent=lambda: self._explain_silence(remote))

    def _open(self) -> tuple[Session, ChannelStream]:
        """Open an engine connection, waiting for a machine or an engine that is just coming back.

        The patience counts from the first failure, so that a client that asks a machine which has
        been away for long learns it soon.
        """
        now = time.monotonic()
        with self._lock:
            since = self._down_since
        patience_s = (
            PATIENCE_S if since is None else max(_SHORT_PATIENCE_S, PATIENCE_S - now + since)
        )
        deadline = now + patience_s
        while True:
            try:
                session = self._link.session(deadline - time.monotonic())
                remote = self._door.open(session)
            except SshError as error:
                with self._lock:
                    self._down_since = self._down_since or now
                # What remains may pass: an engine that starts, a connection lost a moment ago.
                if isinstance(error, LinkDown) or time.monotonic() + _RETRY_S >= deadline:
                    raise
                time.sleep(_RETRY_S)
            else:
                with self._lock:
                    self._down_since = None
                return session, remote

    def _sentence(self, error: SshError) -> str:
        if isinstance(error, EngineDown):
            text = f"the engine of machine {self._machine} does not answer: {error.text}"
        else:
            text = f"machine {self._machine} is not reachable: {error.text}"
        return f"{text}. {error.hint}".strip()

    def _explain_silence(self, remote: ChannelStream) -> bytes:
        """Return the answer for a client whose engine connection ended without a byte."""
        if not remote.by_command:
            # The engine was ended before it read the request. Nobody closes the channel before the
            # client, which waits for us: there is no exit code to wait for.
            return b""
        words = last_words(remote)
        exit_code = remote.wait_exit_code()
        if not words and exit_code > 0:
            words = f"its command ended with exit code {exit_code}"
        if not words:
            return b""  # the engine closed the connection by itself; so do we
        text = f"the engine of machine {self._machine} cannot be reached: {words}"
        return _response_503(text, body=True)


def answer_503(local: socket.socket, message: str) -> None:
    """Read one request from ``local``, answer it with status 503 and ``message``, and close."""
    _log.info("a client was told: %s", message)
    local.settimeout(_REQUEST_S)
    with contextlib.suppress(OSError):  # a client that went away needs no answer
        head = bytearray()
        while b"\r\n\r\n" not in head and len(head) < _LONGEST_HEAD_BYTES:
            data = local.recv(_LONGEST_HEAD_BYTES)
            if not data:
                break
            head += data
        if head:
            local.sendall(_response_503(message, body=not head.startswith(b"HEAD ")))
        local.shutdown(socket.SHUT_WR)
        # Closing with unread input would reset the connection and take the answer away.
        deadline = time.monotonic() + _REQUEST_S
        while time.monotonic() < deadline and local.recv(_LONGEST_HEAD_BYTES):
            pass
    local.close()


def _response_503(message: str, *, body: bool) -> bytes:
    content = json.dumps({"message": message}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (content if body else b"")
