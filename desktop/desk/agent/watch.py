"""Following the engine's events, so that published ports open and close with their containers, and
folders are shared while containers use them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from desk.agent.door import EngineDoor
from desk.agent.folders import SharedFolders
from desk.agent.link import Link
from desk.agent.local_services import LocalServices
from desk.agent.ports import PortForwards, wanted_forwards
from desk.agent.questions import FolderQuestions, PortQuestions
from desk.engine.connection import EngineConnection
from desk.engine.streams import JsonStream
from desk.engine.transport import ChannelTransport, Connection
from desk.errors import DeskError, EngineUnreachable
from desk.ssh.session import Session

_log = logging.getLogger(__name__)

_LINK_S = 3600.0
_ANSWER_S = 20.0
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 3.0

_ACTIONS = ["start", "die", "destroy", "rename", "update", "connect", "disconnect"]


class EngineWatch:
    """Two threads: one reads the engine's events, one lists containers after each. Two more
    answer the engine's questions while there is a connection. ``when_up`` is called at each new
    connection to the engine; it must not block.

    They are apart so that events which come while a list is made ask for one more list, not for
    one each.
    """

    def __init__(
        self,
        link: Link,
        door: EngineDoor,
        ports: PortForwards,
        folders: SharedFolders,
        services: LocalServices | None = None,
        *,
        when_up: Callable[[], None] | None = None,
    ) -> None:
        self._link = link
        self._door = door
        self._ports = ports
        self._folders = folders
        self._services = services
        self._when_up = when_up
        self._closing = threading.Event()
        self._dirty = threading.Event()
        self._lock = threading.Lock()
        self._engine: EngineConnection | None = None
        self._stream: JsonStream | None = None
        self._version: dict[str, str] = {}
        self._threads = [
            threading.Thread(target=self._follow, name="events", daemon=True),
            threading.Thread(target=self._list, name="ports", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End both threads; idempotent. Close the link first: it is what they may wait for."""
        self._closing.set()
        self._dirty.set()
        with self._lock:
            stream = self._stream
        if stream is not None:
            stream.close()
        for thread in self._threads:
            thread.join(timeout=3.0)

    def look_again(self) -> None:
        """Compare ports and folders with containers once more, without an event."""
        self._dirty.set()

    @property
    def engine(self) -> dict[str, object]:
        """The engine's ``version`` and ``api_version``, and whether it ``answers`` now."""
        with self._lock:
            return {"answers": self._stream is not None, **self._version}

    def reach(self, timeout_s: float) -> None:
        """Wait until the engine answers a request. Raises ``DeskError`` after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                engine = self._engine
            try:
                if engine is None:
                    raise EngineUnreachable(
                        "the machine's engine does not answer",
                        hint="`desk machine restart` restarts it; `desk doctor` looks closer.",
                    )
                engine.call("GET", "/version", versioned=False)
            except DeskError:
                if time.monotonic() > deadline or self._closing.is_set():
                    raise
                self._closing.wait(_FIRST_DELAY_S)
            else:
                return

    def call(self, method: str, path: str, body: Mapping[str, object]) -> Any:
        """Ask the engine for something of Desk's own. Raises ``EngineError``."""
        with self._lock:
            engine = self._engine
        if engine is None:
            raise EngineUnreachable("the machine's engine does not answer now")
        return engine.call(method, path, body=body, versioned=False)

    # --- events --------------------------------------------------------------------------------

    def _follow(self) -> None:
        delay_s = _FIRST_DELAY_S
        told = ""
        while not self._closing.is_set():
            started = time.monotonic()
            try:
                self._follow_once(self._link.session(_LINK_S, urgent=False))
                told = ""
            except DeskError as error:
                if error.text != told:
                    told = error.text
                    _log.info("the engine's events cannot be followed: %s", told)
            if time.monotonic() - started > _LONGEST_DELAY_S:
                delay_s = _FIRST_DELAY_S
            self._closing.wait(delay_s)
            delay_s = min(_LONGEST_DELAY_S, delay_s * 2)

    def _follow_once(self, session: Session) -> None:
        def open_channel(timeout_s: float) -> Connection:
            return self._door.open(session)

        engine = EngineConnection(
            ChannelTransport("the machine's engine", open_channel), timeout_s=_ANSWER_S
        )
        try:
            version = engine.call("GET", "/version", versioned=False)
            filters = {"type": ["container", "network"], "event": _ACTIONS}
            with engine.objects("GET", "/events", query={"filters": filters}) as stream:
                with self._lock:
                    self._engine, self._stream = engine, stream
                    self._version = {
                        "version": str(version.get("Version", "")),
                        "api_version": str(version.get("ApiVersion", "")),
                    }
                # What happened before the first event counts as well.
                self._dirty.set()
                if self._closing.is_set():
                    return
                if self._when_up is not None:
                    self._when_up()
                self._share(session)
                services = self._services.offer(session) if self._services is not None else ""
                with ExitStack() as undo:
                    for questions in (
                        PortQuestions(engine, self._ports, self.look_again, services),
                        FolderQuestions(engine, self._folders),
                    ):
                        undo.callback(questions.close)
                        questions.start()
                    for _event in stream:
                        self._dirty.set()
        finally:
            with self._lock:
                self._engine = self._stream = None
            engine.close()

    def _share(self, session: Session) -> None:
        try:
            self._folders.connect(session)
        except DeskError as error:
            # Said again, to the user, when a container wants a folder.
            _log.warning("this computer's folders are not shared: %s", error.text)

    # --- ports ---------------------------------------------------------------------------------

    def _list(self) -> None:
        while True:
            self._dirty.wait()
            if self._closing.is_set():
                return
            self._dirty.clear()
            with self._lock:
                engine = self._engine
            if engine is None:
                continue  # the next connection looks again
            try:
                containers = engine.call("GET", "/containers/json")
            except DeskError as error:
                _log.info("the engine's containers cannot be listed: %s", error.text)
                self._closing.wait(_FIRST_DELAY_S)
                self._dirty.set()
                continue
            self._ports.reconcile(wanted_forwards(containers or []))
            self._folders.reconcile(containers or [])
