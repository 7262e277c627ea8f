"""Whether a machine's engine answers, asked in bounded time."""

from __future__ import annotations

from pathlib import Path

from desk.engine.client import EngineClient
from desk.engine.transport import UnixTransport
from desk.errors import EngineError


def engine_version(socket: Path, *, timeout_s: float) -> str:
    """Return the version of the engine behind ``socket``; raises ``EngineError``."""
    with EngineClient(UnixTransport(socket), timeout_s=timeout_s) as client:
        return str(client.system.version().get("Version", ""))


def engine_obstacle(socket: Path, *, timeout_s: float) -> str:
    """Return an empty text when the engine serves, else why it does not.

    A starting engine answers ``/_ping`` before it has looked at its data, so that is not asked.
    """
    try:
        with EngineClient(UnixTransport(socket), timeout_s=timeout_s) as client:
            client.containers.list(limit=1)
    except EngineError as error:
        return error.text
    return ""
