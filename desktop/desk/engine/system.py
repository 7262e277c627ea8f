"""Calls on the engine itself (``/version``, ``/info``, ``/events``, ``/system/df``)."""

from __future__ import annotations

from desk.engine.connection import EngineConnection, JsonObject
from desk.engine.containers import Filters, encode_filters
from desk.engine.streams import JsonStream
from desk.errors import EngineError


class System:
    """``client.system``."""

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection

    def ping(self, *, timeout_s: float | None = None) -> None:
        """Return if the engine answers; ``EngineError`` otherwise."""
        self._connection.status("GET", "/_ping", versioned=False, timeout_s=timeout_s)

    def version(self) -> JsonObject:
        details: JsonObject = self._connection.call("GET", "/version")
        return details

    def info(self) -> JsonObject:
        details: JsonObject = self._connection.call("GET", "/info")
        return details

    def log_in(self, login: JsonObject) -> JsonObject:
        """Have the engine ask a registry whether it knows somebody (``AuthConfig``)."""
        answer: JsonObject = self._connection.call("POST", "/auth", body=login, timeout_s=120)
        return answer

    def disk_usage(self) -> JsonObject:
        """Return ``Images``, ``Containers``, ``Volumes``, ``BuildCache`` with their sizes."""
        usage: JsonObject = self._connection.call("GET", "/system/df", timeout_s=600)
        return usage

    def out_of_memory(self) -> list[JsonObject]:
        """Return the containers that ran out of memory in their last run, the latest first: ``Id``,
        ``Name``, ``TimeNano``, ``Limit``, ``Reason``, ``Remedy`` and more.

        An engine that is not Desk's knows nothing of that: the list is empty then.
        """
        try:
            found: list[JsonObject] = self._connection.call("GET", "/desk/out-of-memory")
        except EngineError as error:
            if error.status != 404:
                raise
            return []
        return found

    def memory(self) -> JsonObject:
        """Return the machine's memory in bytes: ``Total``, ``Used``, ``Cache``, ``Free``, what
        each of ``Containers`` holds, and a ``History`` of the last hour."""
        usage: JsonObject = self._connection.call("GET", "/desk/memory")
        return usage

    def power(self) -> JsonObject:
        """Return what is in force because the laptop is on battery: ``NanoCpus`` for all containers
        together, who is ``Frozen``, and who of those with the label is ``Spared``."""
        told: JsonObject = self._connection.call("GET", "/desk/power")
        return told

    def prepare_restart(self, *, policy_only: bool, grace_s: int) -> JsonObject:
        """Stop all containers, because the machine is about to end; unless ``policy_only``, the
        next engine gives back what ran. Returns what ``restart_report`` does."""
        told: JsonObject = self._connection.call(
            "POST",
            "/desk/restart",
            body={"PolicyOnly": policy_only, "TimeoutSeconds": grace_s},
            timeout_s=grace_s + 60,
        )
        return told

    def restart_report(self) -> JsonObject:
        """Return how many containers are ``Pending`` after the last restart of the machine, and
        of each of ``Containers`` its state ``Before`` and ``After``."""
        told: JsonObject = self._connection.call("GET", "/desk/restart")
        return told

    def disk(self, *, settle: bool = False) -> dict[str, int]:
        """Return the disk of the engine's data in bytes: ``Total``, ``Used``, ``Available`` for
        containers, and the ``Reserve`` that only the engine can use; and whether it is ``Full``,
        which older engines do not tell. ``settle``: after all deletions have come to the disk."""
        usage: dict[str, int] = self._connection.call(
            "GET", "/desk/disk", query={"settle": "1" if settle else None}
        )
        return usage

    def check_store(self, *, repair: bool, deep: bool) -> JsonStream:
        """Have the engine check its images, layers and containers' roots. Its objects have
        ``Problem``, ``Repaired`` and ``Outcome``; the last one ``Found`` and ``Left``."""
        query = {"repair": "1" if repair else None, "deep": "1" if deep else None}
        return self._connection.objects("POST", "/desk/store/check", query=query)

    def events(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        filters: Filters | None = None,
    ) -> JsonStream:
        """Return what happens from now on, and what happened since a Unix time; the stream ends
        at ``until``, or when another thread closes it."""
        return self._connection.objects(
            "GET",
            "/events",
            query={"since": since, "until": until, "filters": encode_filters(filters)},
        )
