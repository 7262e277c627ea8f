"""The agent's control socket: one JSON request, one JSON answer, connection closed.

``multiprocessing.connection`` frames the messages and gives a Unix socket here and a named pipe on
Windows. Only ``send_bytes`` and ``recv_bytes`` are used: nothing is ever unpickled. The socket is
in a directory of its owner and has mode 0600.

Request: ``{"do": NAME}``, with ``"with": OBJECT`` for what takes one. Answer: ``{"ok": VALUE}``, or
``{"error": TEXT, "hint": TEXT}``.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from desk.errors import DeskError, MachineError

_log = logging.getLogger(__name__)

_LONGEST_MESSAGE_BYTES = 1 << 20
_PATIENCE_S = 5.0

Actions = Mapping[str, Callable[[], object]]
Settings = Mapping[str, Callable[[Mapping[str, Any]], object]]


def address_of(path: Path) -> str:
    """Return the address of the control socket at ``path``, a named pipe on Windows."""
    if sys.platform == "win32":
        return rf"\\.\pipe\desk-{path.parent.name}-agent"
    return str(path)


class ControlServer:
    """Answers requests at ``path`` from its own thread; ``actions`` must not block for long.
    ``settings`` are those that take an object."""

    def __init__(self, path: Path, actions: Actions, settings: Settings | None = None) -> None:
        self._path = path
        self._actions = actions
        self._settings = settings or {}
        self._listener: Listener | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)

    def start(self) -> None:
        """Listen; what an agent that died left at the path is replaced."""
        if sys.platform != "win32":
            self._path.unlink(missing_ok=True)
        self._listener = Listener(address_of(self._path))
        if sys.platform != "win32":
            self._path.chmod(0o600)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and remove the socket; idempotent."""
        if self._listener is None or self._closing.is_set():
            return
        self._closing.set()
        try:
            Client(address_of(self._path)).close()  # wakes the thread from accept
        except OSError:
            _log.debug("the control socket is gone already")
        self._thread.join(timeout=_PATIENCE_S)
        self._listener.close()
        if sys.platform != "win32":
            self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        assert self._listener is not None
        while not self._closing.is_set():
            try:
                connection = self._listener.accept()
            except OSError as error:
                _log.warning("the control socket failed: %s", error)
                return
            with connection:
                if not self._closing.is_set():
                    self._answer(connection)

    def _answer(self, connection: Connection[Any, Any]) -> None:
        try:
            if not connection.poll(_PATIENCE_S):
                return
            request = json.loads(connection.recv_bytes(_LONGEST_MESSAGE_BYTES))
            answer = self._do(request)
            connection.send_bytes(json.dumps(answer).encode())
        except (OSError, EOFError, ValueError) as error:
            _log.warning("a control request failed: %r", error)

    def _do(self, request: object) -> dict[str, object]:
        asked = request if isinstance(request, dict) else {}
        name, value = asked.get("do"), asked.get("with")
        action = self._actions.get(name) if isinstance(name, str) else None
        if isinstance(name, str) and isinstance(value, dict) and name in self._settings:
            action = partial(self._settings[name], value)
        if action is None:
            known = ", ".join(sorted({*self._actions, *self._settings}))
            return {"error": f"the agent cannot do {name!r}", "hint": f"It knows: {known}."}
        try:
            return {"ok": action()}
        except DeskError as error:
            return {"error": error.text, "hint": error.hint}


def ask(
    path: Path,
    name: str,
    *,
    value: Mapping[str, object] | None = None,
    timeout_s: float = _PATIENCE_S,
) -> Any:
    """Send the request ``name``, with a ``value`` where it takes one, to the agent at ``path`` and
    return its answer's value.

    Raises ``MachineError`` where nothing answers or the agent refuses.
    """
    request = {"do": name} if value is None else {"do": name, "with": value}
    try:
        with Client(address_of(path)) as connection:
            connection.send_bytes(json.dumps(request).encode())
            if not connection.poll(timeout_s):
                raise MachineError(
                    f"the agent at {path} does not answer",
                    hint="Stop it with `desk machine stop` and start the machine again.",
                )
            answer = json.loads(connection.recv_bytes(_LONGEST_MESSAGE_BYTES))
    except (OSError, EOFError) as error:
        raise MachineError(
            f"no agent answers at {path}",
            hint="Start the machine with `desk machine start`; that starts its agent.",
        ) from error
    if "error" in answer:
        raise MachineError(answer["error"], hint=answer.get("hint", ""))
    return answer.get("ok")
