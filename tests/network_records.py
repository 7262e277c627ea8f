"""Network records in memory, for tests of what uses them."""

from __future__ import annotations

from deskd.domain.network import NetworkRecord


class MemoryRecords:
    """``NetworkRecords`` without a database."""

    def __init__(self) -> None:
        self.records: dict[str, NetworkRecord] = {}

    def all(self) -> list[NetworkRecord]:
        return list(self.records.values())

    def put(self, record: NetworkRecord) -> None:
        self.records[record.id] = record

    def delete(self, key: str) -> None:
        self.records.pop(key, None)
