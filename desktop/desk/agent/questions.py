"""Answering the engine, which asks before a start whether the container's ports can be had here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from desk.agent.ports import PortForwards, wanted_forwards
from desk.engine.connection import EngineConnection
from desk.engine.streams import JsonStream
from desk.errors import DeskError, EngineError

_log = logging.getLogger(__name__)

_PATH = "/desk/ports"


class PortQuestions:
    """Follows the questions of one engine connection in a thread, from ``start`` to ``close``.

    A port that was promised is held until the engine tells that the start is over; then the list of
    containers decides again, which ``look_again`` asks for.
    """

    def __init__(
        self, engine: EngineConnection, ports: PortForwards, look_again: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._ports = ports
        self._look_again = look_again
        self._stream: JsonStream | None = None
        self._thread = threading.Thread(target=self._follow, name="questions", daemon=True)

    def start(self) -> None:
        """Begin; returns when the engine knows whom to ask. Raises what the connection meets."""
        try:
            self._stream = self._engine.objects("GET", _PATH, versioned=False)
        except EngineError as error:
            if error.status != 404:
                raise
            _log.info("this engine asks nobody for ports")
            return
        self._thread.start()

    def close(self) -> None:
        """End the thread and let go of what is only promised."""
        if self._stream is not None:
            self._stream.close()
            self._thread.join(timeout=3.0)
            self._ports.settle_all()

    def _follow(self) -> None:
        assert self._stream is not None
        try:
            for message in self._stream:
                self._take(message)
        except DeskError as error:
            # The events' connection is the same; what mends it brings a new thread.
            _log.info("the engine's questions cannot be followed: %s", error.text)

    def _take(self, message: dict[str, Any]) -> None:
        number = int(message["Id"])
        if message.get("Settled"):
            self._ports.settle(number)
            self._look_again()
            return
        refusal = self._ports.promise(number, wanted_forwards([message]))
        try:
            self._engine.call(
                "POST", f"{_PATH}/{number}", body={"Refusal": refusal}, versioned=False
            )
        except EngineError as error:
            _log.info("an answer about ports came too late: %s", error.text)
