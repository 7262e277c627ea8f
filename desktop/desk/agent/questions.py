"""Answering the engine, which asks before a start whether the container's ports can be had here,
and where its folders are."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from desk.agent.folders import SharedFolders
from desk.agent.ports import PortForwards, wanted_forwards
from desk.engine.connection import EngineConnection
from desk.engine.streams import JsonStream
from desk.errors import DeskError, EngineError

_log = logging.getLogger(__name__)


class Questions(ABC):
    """Follows the questions of one engine connection in a thread, from ``start`` to ``close``."""

    def __init__(self, engine: EngineConnection, path: str, query: dict[str, str]) -> None:
        self._engine = engine
        self._path = path
        self._query = query
        self._stream: JsonStream | None = None
        self._thread = threading.Thread(target=self._follow, name="questions", daemon=True)

    def start(self) -> None:
        """Begin; returns when the engine knows whom to ask. Raises what the connection meets."""
        try:
            self._stream = self._engine.objects(
                "GET", self._path, query=self._query, versioned=False
            )
        except EngineError as error:
            if error.status != 404:
                raise
            _log.info("this engine does not ask at %s", self._path)
            return
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        if self._stream is not None:
            self._stream.close()
            self._thread.join(timeout=3.0)

    @abstractmethod
    def take(self, number: int, message: dict[str, Any]) -> Mapping[str, Any] | None:
        """Return the answer to a question, ``None`` for what wants none."""

    def _follow(self) -> None:
        assert self._stream is not None
        try:
            for message in self._stream:
                number = int(message["Id"])
                answer = self.take(number, message)
                if answer is not None:
                    self._send(number, answer)
        except DeskError as error:
            # The events' connection is the same; what mends it brings a new thread.
            _log.info("the engine's questions cannot be followed: %s", error.text)

    def _send(self, number: int, answer: Mapping[str, Any]) -> None:
        try:
            self._engine.call("POST", f"{self._path}/{number}", body=answer, versioned=False)
        except EngineError as error:
            _log.info("an answer to %s came too late: %s", self._path, error.text)


class PortQuestions(Questions):
    """Asked for ports. One that was promised is held until the engine tells that the start is over;
    then the list of containers decides again, which ``look_again`` asks for. ``services`` is where
    the machine finds this computer, empty where it does not."""

    def __init__(
        self,
        engine: EngineConnection,
        ports: PortForwards,
        look_again: Callable[[], None],
        services: str,
    ) -> None:
        super().__init__(engine, "/desk/ports", {"laptop": services} if services else {})
        self._ports = ports
        self._look_again = look_again

    def close(self) -> None:
        """End the thread and let go of what is only promised."""
        super().close()
        self._ports.settle_all()

    def take(self, number: int, message: dict[str, Any]) -> Mapping[str, Any] | None:
        if message.get("Settled"):
            self._ports.settle(number)
            self._look_again()
            return None
        return {"Refusal": self._ports.promise(number, wanted_forwards([message]))}


class FolderQuestions(Questions):
    """Asked for folders."""

    def __init__(self, engine: EngineConnection, folders: SharedFolders) -> None:
        super().__init__(engine, "/desk/folders", {})
        self._folders = folders

    def take(self, number: int, message: dict[str, Any]) -> Mapping[str, Any] | None:
        answer = self._folders.answer([str(path) for path in message.get("Folders") or []])
        return {"Places": answer.places, "Reasons": answer.reasons, "Refusal": answer.refusal}
