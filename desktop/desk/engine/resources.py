"""Calls on networks and volumes (``/networks``, ``/volumes``)."""

from __future__ import annotations

from desk.engine.connection import EngineConnection, JsonObject, JsonObjects, segment
from desk.engine.containers import Filters, encode_filters

_FOR_EVER = float("inf")


class Networks:
    """``client.networks``."""

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection

    def list(self, *, filters: Filters | None = None) -> JsonObjects:
        query = {"filters": encode_filters(filters)}
        return self._connection.call("GET", "/networks", query=query) or []

    def create(self, config: JsonObject) -> JsonObject:
        """Create a network from a ``NetworkCreate`` body; returns ``Id`` and ``Warning``."""
        created: JsonObject = self._connection.call("POST", "/networks/create", body=config)
        return created

    def inspect(self, network: str, *, verbose: bool = False) -> JsonObject:
        details: JsonObject = self._connection.call(
            "GET", f"/networks/{segment(network)}", query={"verbose": verbose or None}
        )
        return details

    def connect(self, network: str, container: str, *, endpoint: JsonObject | None = None) -> None:
        body: JsonObject = {"Container": container}
        if endpoint:
            body["EndpointConfig"] = endpoint
        self._connection.status("POST", f"/networks/{segment(network)}/connect", body=body)

    def disconnect(self, network: str, container: str, *, force: bool = False) -> None:
        body = {"Container": container, "Force": force}
        self._connection.status("POST", f"/networks/{segment(network)}/disconnect", body=body)

    def remove(self, network: str) -> None:
        self._connection.status("DELETE", f"/networks/{segment(network)}")

    def prune(self, *, filters: Filters | None = None) -> JsonObject:
        """Remove unused networks; returns ``NetworksDeleted``."""
        report: JsonObject = self._connection.call(
            "POST", "/networks/prune", query={"filters": encode_filters(filters)}
        )
        return report


class Volumes:
    """``client.volumes``."""

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection

    def list(self, *, filters: Filters | None = None) -> JsonObjects:
        query = {"filters": encode_filters(filters)}
        answer = self._connection.call("GET", "/volumes", query=query) or {}
        return answer.get("Volumes") or []

    def create(self, config: JsonObject) -> JsonObject:
        """Create a volume from a ``VolumeCreateOptions`` body."""
        created: JsonObject = self._connection.call("POST", "/volumes/create", body=config)
        return created

    def inspect(self, volume: str) -> JsonObject:
        details: JsonObject = self._connection.call("GET", f"/volumes/{segment(volume)}")
        return details

    def remove(self, volume: str, *, force: bool = False) -> None:
        query = {"force": force or None, "bin": self._connection.bin_group or None}
        self._connection.status("DELETE", f"/volumes/{segment(volume)}", query=query)

    def prune(self, *, filters: Filters | None = None) -> JsonObject:
        """Remove unused volumes; returns ``VolumesDeleted`` and ``SpaceReclaimed``."""
        report: JsonObject = self._connection.call(
            "POST",
            "/volumes/prune",
            query={
                "filters": encode_filters(filters),
                "bin": self._connection.bin_group or None,
            },
            timeout_s=_FOR_EVER,
        )
        return report
