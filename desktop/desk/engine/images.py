"""Calls on images (``/images``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from desk.engine.connection import EngineConnection, JsonObject, JsonObjects, segment
from desk.engine.containers import Filters, encode_filters
from desk.engine.streams import ByteStream, ProgressStream

_FOR_EVER = float("inf")
_TRANSFER_START_S = 120.0


class Images:
    """``client.images``: images go by reference (``name:tag``) or ID."""

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection

    def list(
        self, *, all_: bool = False, filters: Filters | None = None, shared: bool = False
    ) -> JsonObjects:
        """Return the images; ``shared`` has shared bytes and containers counted, too."""
        query = {
            "all": all_ or None,
            "filters": encode_filters(filters),
            "shared-size": shared or None,
        }
        return self._connection.call("GET", "/images/json", query=query) or []

    def inspect(self, image: str) -> JsonObject:
        details: JsonObject = self._connection.call("GET", f"/images/{segment(image)}/json")
        return details

    def history(self, image: str) -> JsonObjects:
        return self._connection.call("GET", f"/images/{segment(image)}/history") or []

    def import_(
        self,
        source: Iterable[bytes] | str,
        *,
        repository: str | None = None,
        tag: str | None = None,
        message: str | None = None,
        changes: Iterable[str] = (),
        platform: str | None = None,
    ) -> ProgressStream:
        """Make an image of a root file system's tar archive, given as its bytes or as the URL
        from which the engine gets it. The last progress object's ``status`` is the image's ID."""
        query = {
            "fromSrc": source if isinstance(source, str) else "-",
            "repo": repository,
            "tag": tag,
            "message": message,
            "changes": list(changes) or None,
            "platform": platform,
        }
        pieces = None if isinstance(source, str) else source
        return self._connection.progress("POST", "/images/create", query=query, pieces=pieces)

    def pull(
        self,
        name: str,
        *,
        tag: str | None = None,
        platform: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ProgressStream:
        """Fetch an image from its registry; all tags where none is said. ``headers`` are those of
        a login (``desk.engine.logins``)."""
        query = {"fromImage": name, "tag": tag, "platform": platform}
        return self._connection.progress(
            "POST", "/images/create", query=query, headers=headers, timeout_s=_FOR_EVER
        )

    def push(
        self, name: str, *, tag: str | None = None, headers: Mapping[str, str] | None = None
    ) -> ProgressStream:
        """Send an image to its registry; all tags where none is said."""
        return self._connection.progress(
            "POST",
            f"/images/{segment(name)}/push",
            query={"tag": tag},
            # Docker's engine wants the header even of somebody who is nobody.
            headers=headers or {"X-Registry-Auth": "e30="},
            timeout_s=_FOR_EVER,
        )

    def search(
        self,
        term: str,
        *,
        limit: int | None = None,
        filters: Filters | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> JsonObjects:
        """Return what a registry finds."""
        query = {"term": term, "limit": limit, "filters": encode_filters(filters)}
        found: JsonObjects | None = self._connection.call(
            "GET", "/images/search", query=query, headers=headers, timeout_s=_TRANSFER_START_S
        )
        return found or []

    def distribution(self, image: str, *, headers: Mapping[str, str] | None = None) -> JsonObject:
        """Return what the image's registry says of it: ``Descriptor`` and ``Platforms``."""
        found: JsonObject = self._connection.call(
            "GET",
            f"/distribution/{segment(image)}/json",
            headers=headers,
            timeout_s=_TRANSFER_START_S,
        )
        return found

    def load(self, archive: Iterable[bytes], *, quiet: bool = False) -> ProgressStream:
        """Load the images in a tar archive that ``save`` made."""
        return self._connection.progress(
            "POST", "/images/load", query={"quiet": quiet or None}, pieces=archive
        )

    def save(self, images: Iterable[str]) -> ByteStream:
        """Return images with their layers and tags as one tar archive."""
        return ByteStream(
            self._connection.stream(
                "GET", "/images/get", query={"names": list(images)}, timeout_s=_FOR_EVER
            )
        )

    def tag(self, image: str, *, repository: str, tag: str | None = None) -> None:
        query = {"repo": repository, "tag": tag}
        self._connection.status("POST", f"/images/{segment(image)}/tag", query=query)

    def remove(self, image: str, *, force: bool = False, prune: bool = True) -> JsonObjects:
        """Remove a tag, and the image with its last; returns ``Untagged``, ``Deleted`` items."""
        query = {
            "force": force or None,
            "noprune": None if prune else True,
            "bin": self._connection.bin_group or None,
        }
        return (
            self._connection.call(
                "DELETE", f"/images/{segment(image)}", query=query, timeout_s=_FOR_EVER
            )
            or []
        )

    def prune(self, *, filters: Filters | None = None) -> JsonObject:
        """Remove unused images; returns ``ImagesDeleted`` and ``SpaceReclaimed``."""
        report: JsonObject = self._connection.call(
            "POST",
            "/images/prune",
            query={
                "filters": encode_filters(filters),
                "bin": self._connection.bin_group or None,
            },
            timeout_s=_FOR_EVER,
        )
        return report
