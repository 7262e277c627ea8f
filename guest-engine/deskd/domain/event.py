"""Events as the Engine API sends them (``EventMessage``), with the older field names beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deskd.record import Record, field

# Before API 1.22 events were flat; clients still read these names for containers and images.
_TYPES_WITH_OLD_NAMES = ("container", "image")


class Event(Record):
    """Something that happened: ``type`` is ``container``, ``image``, ``network``, ``volume`` or
    ``daemon``; ``time_ns`` counts from the epoch."""

    type: str
    action: str
    actor_id: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    time_ns: int = 0

    def as_api(self) -> dict[str, Any]:
        """Return the JSON object of the API."""
        message: dict[str, Any] = {}
        if self.type in _TYPES_WITH_OLD_NAMES:
            message["status"] = self.action
            message["id"] = self.actor_id
            if self.type == "container" and "image" in self.attributes:
                message["from"] = self.attributes["image"]
        message["Type"] = self.type
        message["Action"] = self.action
        message["Actor"] = {"ID": self.actor_id, "Attributes": dict(self.attributes)}
        message["scope"] = "local"
        message["time"] = self.time_ns // 1_000_000_000
        message["timeNano"] = self.time_ns
        return message
