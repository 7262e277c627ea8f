"""``docker ps`` and ``docker container prune``: selection, summaries, words for ages."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from deskd.domain.filters import Filters
from deskd.domain.state import ContainerRecord, HealthStatus, Status
from deskd.domain.times import parse_duration, parse_moment
from deskd.errors import Conflict, InvalidArgument
from deskd.images.catalog import Catalog
from deskd.services.containers.endpoints import published_ports
from deskd.services.containers.inspection import Inspection, render_mount, render_networks
from deskd.services.containers.lifecycle import Lifecycle
from deskd.services.containers.links import Links
from deskd.services.containers.merging import parse_port
from deskd.services.containers.registry import Container, ContainerRegistry

FILTERS = (
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label",
    "name", "network", "publish", "since", "status", "volume",
)  # fmt: skip
PRUNE_FILTERS = ("label", "label!", "until")
_HEALTH = ("none", "starting", "healthy", "unhealthy")


class Listing:
    """Finds and summarises containers, newest first."""

    def __init__(
        self,
        registry: ContainerRegistry,
        inspection: Inspection,
        catalog: Catalog,
        lifecycle: Lifecycle,
    ) -> None:
        self._registry = registry
        self._links = Links(registry)
        self._inspection = inspection
        self._catalog = catalog
        self._lifecycle = lifecycle

    async def select(
        self, filters: Filters, *, everything: bool = False, limit: int = 0, size: bool = False
    ) -> list[dict[str, Any]]:
        """Return ``ContainerSummary`` objects. Raises ``InvalidArgument`` for bad filters."""
        filters.check(FILTERS)
        tests = self._tests(filters)
        if filters.get("status") or limit > 0:
            everything = True
        ordered = sorted(self._registry, key=lambda c: c.record.created_ns, reverse=True)
        chosen = []
        for container in ordered:
            if not everything and not container.active:
                continue
            if all(test(container) for test in tests):
                chosen.append(container)
                if limit > 0 and len(chosen) == limit:
                    break
        summaries = []
        meanings: dict[str, str] = {}
        names = self._links.names()
        for container in chosen:
            summary = self._summary(container, names.get(container.id, []), meanings)
            if size:
                summary.update(await self._inspection.sizes(container))
            summaries.append(summary)
        return summaries

    def _tests(self, filters: Filters) -> list[Callable[[Container], bool]]:
        tests: list[Callable[[Container], bool]] = []
        simple: dict[str, Callable[[Container], bool]] = {
            "id": lambda c: filters.allows_prefix("id", c.id),
            "name": lambda c: (
                filters.allows_pattern("name", c.name)
                or filters.allows_pattern("name", f"/{c.name}")
            ),
            "label": lambda c: filters.allows_labels(c.record.labels),
            "status": lambda c: filters.allows("status", str(c.record.state.status)),
            "volume": lambda c: _has_volume(c.record, filters.get("volume")),
            "network": lambda c: _has_network(c.record, filters.get("network")),
            "health": lambda c: filters.allows("health", _health_word(c.record)),
            "isolation": lambda c: True,
        }
        tests += [test for name, test in simple.items() if filters.get(name)]
        _check_words("status", filters.get("status"), [str(status) for status in Status])
        _check_words("health", filters.get("health"), _HEALTH)
        if filters.get("is-task") and filters.flag("is-task"):
            tests.append(lambda c: False)  # tasks belong to swarms, which this engine has none of
        if filters.get("exited"):
            codes = [_integer("exited", text) for text in filters.get("exited")]
            tests.append(
                lambda c: (
                    c.record.state.exit_code in codes
                    and c.record.state.started_at_ns > 0
                    and not c.active
                )
            )
        for name in ("publish", "expose"):
            if wanted := [p for text in filters.get(name) for p in _port_range(text)]:
                tests.append(lambda c, n=name, w=wanted: _has_port(c.record, n, w))  # type: ignore[misc]
        for text in filters.get("before"):
            limit_ns = self._registry.get(text).record.created_ns
            tests.append(lambda c, t=limit_ns: c.record.created_ns < t)  # type: ignore[misc]
        for text in filters.get("since"):
            limit_ns = self._registry.get(text).record.created_ns
            tests.append(lambda c, t=limit_ns: c.record.created_ns > t)  # type: ignore[misc]
        if filters.get("ancestor"):
            wanted_images = self._descendants(filters.get("ancestor"))
            tests.append(lambda c: c.record.image_id in wanted_images)
        return tests

    def _summary(
        self, container: Container, link_names: list[str], meanings: dict[str, str]
    ) -> dict[str, Any]:
        record = container.record
        words = [record.path, *record.args]
        return {
            "Id": record.id,
            "Names": [f"/{record.name}", *link_names],
            "Image": self._image_name(record, meanings),
            "ImageID": record.image_id,
            "Command": " ".join(_quoted(word) for word in words),
            "Created": record.created_ns // 10**9,
            "Ports": _summary_ports(record),
            "Labels": record.labels,
            "State": str(record.state.status),
            "Status": status_text(record, time.time_ns()),
            "HostConfig": _summary_host_config(record),
            "NetworkSettings": {"Networks": render_networks(record)},
            "Mounts": [render_mount(point) for point in record.mounts],
        }

    def _image_name(self, record: ContainerRecord, meanings: dict[str, str]) -> str:
        """Return the name the container was made from, or the image's ID once it means another.

        ``meanings`` remembers look-ups during one listing.
        """
        name = record.image_name
        if name not in meanings:
            found = self._catalog.find(name)
            meanings[name] = found.id if found else ""
        return name if meanings[name] == record.image_id else record.image_id

    def _descendants(self, names: list[str]) -> set[str]:
        """Return the IDs of these images and of all that were built on them."""
        found = [record.id for name in names if (record := self._catalog.find(name))]
        known = set(found)
        while found:
            for child in self._catalog.children(found.pop()):
                if child.id not in known:
                    known.add(child.id)
                    found.append(child.id)
        return known

    async def prune(self, filters: Filters, *, group: str = "") -> dict[str, Any]:
        """Delete containers that do not run, with a ``group`` into the bin. Returns
        ``ContainersPruneResponse``."""
        filters.check(PRUNE_FILTERS)
        if len(filters.get("until")) > 1:
            raise InvalidArgument("more than one until filter specified")
        until_ns = None
        for text in filters.get("until"):
            until_ns = _until(text)
        deleted: list[str] = []
        reclaimed = 0
        for container in self._registry:
            record = container.record
            if container.active or record.state.status in (Status.REMOVING, Status.DEAD):
                continue
            if until_ns is not None and record.created_ns > until_ns:
                continue
            if not filters.allows_prune(record.labels):
                continue
            # Nothing is got back from the bin.
            size = 0 if group else (await self._inspection.sizes(container))["SizeRw"]
            with suppress(Conflict):  # somebody started or removed it in this moment
                await self._lifecycle.remove(record.id, group=group)
                deleted.append(record.id)
                reclaimed += size
        self._registry.tell_prune("container", reclaimed)
        return {"ContainersDeleted": deleted or None, "SpaceReclaimed": reclaimed}


def _until(text: str) -> int:
    try:
        return time.time_ns() - parse_duration(text)
    except ValueError:
        moment = parse_moment(text, "until")
        if moment is None:
            raise InvalidArgument("invalid filter 'until=0'") from None
        return moment


def _quoted(word: str) -> str:
    return f"'{word}'" if " " in word else word


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidArgument(f"invalid filter '{name}={text}': a number is expected") from None


def _check_words(name: str, given: list[str], known: Any) -> None:
    for word in given:
        if word not in known:
            raise InvalidArgument(f"invalid filter '{name}={word}'; use one of {', '.join(known)}")


def _port_range(text: str) -> list[tuple[int, str]]:
    span, _, protocol = text.partition("/")
    first, _, last = span.partition("-")
    start, kind = parse_port(f"{first}/{protocol or 'tcp'}")
    end, _ = parse_port(f"{last or first}/{protocol or 'tcp'}")
    return [(number, kind) for number in range(start, end + 1)]


def _has_port(record: ContainerRecord, name: str, wanted: list[tuple[int, str]]) -> bool:
    ports = _summary_ports(record)
    if name == "publish":
        found = {(port.get("PublicPort"), port["Type"]) for port in ports}
    else:
        found = {(port["PrivatePort"], port["Type"]) for port in ports}
        found |= {parse_port(text) for text in record.config.exposed_ports or {}}
    return any(item in found for item in wanted)


def _has_volume(record: ContainerRecord, wanted: list[str]) -> bool:
    names = {n for point in record.mounts for n in (point.name, point.destination, point.source)}
    return any(item in names for item in wanted)


def _health_word(record: ContainerRecord) -> str:
    return str(record.state.health.status) if record.state.health else "none"


def _has_network(record: ContainerRecord, wanted: list[str]) -> bool:
    names = set(record.networks) | set(record.endpoints)
    ids = [endpoint.network_id for endpoint in record.endpoints.values()]
    return any(item in names or any(key.startswith(item) for key in ids) for item in wanted)


def _summary_host_config(record: ContainerRecord) -> dict[str, Any]:
    shown: dict[str, Any] = {"NetworkMode": record.host_config.network_mode}
    if record.host_config.annotations:
        shown["Annotations"] = record.host_config.annotations
    return shown


def _summary_ports(record: ContainerRecord) -> list[dict[str, Any]]:
    if not record.state.running:
        return []
    ports = published_ports(record)
    published = {(port["PrivatePort"], port["Type"]) for port in ports}
    for name in record.config.exposed_ports or {}:
        number, protocol = parse_port(name)
        if (number, protocol) not in published:
            ports.append({"PrivatePort": number, "Type": protocol})
    return ports


def status_text(record: ContainerRecord, now_ns: int) -> str:
    """Return the words of the STATUS column: ``Up 2 minutes``, ``Exited (0) 3 hours ago``."""
    state = record.state
    if state.status is Status.CREATED:
        return "Created"
    if state.status is Status.REMOVING:
        return "Removal In Progress"
    if state.status is Status.DEAD:
        return "Dead"
    if state.running:
        up = f"Up {age_text(now_ns - state.started_at_ns)}"
        if state.status is Status.PAUSED:
            return f"{up} (Paused)"
        if state.health is None:
            return up
        starting = state.health.status is HealthStatus.STARTING
        return f"{up} ({'health: ' if starting else ''}{state.health.status})"
    ago = age_text(now_ns - state.finished_at_ns) if state.finished_at_ns else "a moment"
    word = "Restarting" if state.status is Status.RESTARTING else "Exited"
    return f"{word} ({state.exit_code}) {ago} ago"


def age_text(age_ns: int) -> str:
    """Write a span of time in words, rounded as Docker's users know it."""
    seconds = max(age_ns, 0) // 10**9
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < 60:
        return f"{seconds} seconds"
    minutes = seconds // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    days = hours // 24
    if days < 14:
        return f"{days} days"
    if days < 60:
        return f"{days // 7} weeks"
    if days < 730:
        return f"{days // 30} months"
    return f"{days // 365} years"
