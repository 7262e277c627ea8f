"""Calls on the bin (``/desk/bin``), which only Desk's own engine has."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from desk.engine.connection import EngineConnection, JsonObject
from desk.errors import EngineError


class Bin:
    """``client.bin``; docs/desk-api.json describes the objects."""

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection

    def contents(self) -> JsonObject:
        """Return ``Entries``, the latest first, and their ``Size``; an engine that is not Desk's
        has none."""
        try:
            told: JsonObject = self._connection.call("GET", "/desk/bin")
        except EngineError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return {"Entries": [], "Size": 0}
        return told

    def restore(self, ids: Sequence[str]) -> JsonObject:
        """Bring entries back; returns those ``Restored`` and ``Failed``."""
        body = {"Ids": list(ids)}
        told: JsonObject = self._connection.call("POST", "/desk/bin/restore", body=body)
        return told

    def empty(self) -> int:
        """Delete all entries for good; returns the bytes that the machine's disk got back."""
        told = self._connection.call("DELETE", "/desk/bin", timeout_s=float("inf"))
        return int(told["SpaceReclaimed"])
