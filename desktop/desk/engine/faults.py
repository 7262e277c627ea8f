"""Calls on network faults (``/desk/faults``), which only Desk's own engine knows."""

from __future__ import annotations

from desk.engine.connection import EngineConnection, JsonObject, JsonObjects, segment

Names = list[str]  # within the class, ``list`` is the call


class Faults:
    """``client.faults``; docs/desk-api.json describes the objects."""

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection

    def list(self, *, network: str = "") -> JsonObjects:
        """Return all faults, or those of one network, oldest first."""
        query = {"network": network or None}
        return self._connection.call("GET", "/desk/faults", query=query) or []

    def create(self, request: JsonObject) -> JsonObject:
        """Let a fault hold (``FaultRequest``); returns it as it is listed."""
        made: JsonObject = self._connection.call("POST", "/desk/faults", body=request)
        return made

    def inspect(self, name: str) -> JsonObject:
        found: JsonObject = self._connection.call("GET", f"/desk/faults/{segment(name)}")
        return found

    def heal(self, name: str) -> None:
        self._connection.status("DELETE", f"/desk/faults/{segment(name)}")

    def heal_all(self, *, network: str = "") -> Names:
        """End all faults, or those of one network; returns their names."""
        query = {"network": network or None}
        names: Names = self._connection.call("DELETE", "/desk/faults", query=query)["Healed"]
        return names
