"""A registry whose broken uploads can be gone on with, as the distribution specification has it: a
real one behind a front that collects an upload's bytes and hands them on at its end."""

from __future__ import annotations

import threading
from typing import NamedTuple

from tests.engine.registry_front import FrontHandler
from tests.http_service import HttpService


class Piece(NamedTuple):
    """A PATCH: its ``Content-Range``, "" in a stream, and how many bytes were taken of it."""

    place: str
    size: int


class _Handler(FrontHandler):
    owner: ResumableUploads

    def serve(self) -> None:
        upload = self.path.partition("?")[0] if "/blobs/uploads/" in self.path else ""
        with self.owner.lock:
            if self.command == "PATCH":
                self._piece(upload)
            elif self.command == "GET" and upload:
                self.owner.asked += 1
                self.answer(204, self._status(upload), b"")
            elif self.command == "PUT" and upload:
                self.pass_on(self.owner.received.get(upload, b"") + self.body())
            else:
                self.pass_on(self.body())

    def _piece(self, upload: str) -> None:
        owner = self.owner
        received = owner.received.setdefault(upload, b"")
        place = self.headers.get("Content-Range", "")
        if place and place.partition("-")[0] != str(len(received)):
            return self.answer(416, self._status(upload), b"")
        cut = owner.cuts > 0
        body = self.body(owner.cut_bytes if cut else -1)
        if cut and place:
            body = body[: owner.cut_bytes]
        owner.pieces.append(Piece(place, len(body)))
        owner.received[upload] = owner.altered(received + body) if cut else received + body
        if not cut:
            return self.answer(202, self._status(upload), b"")
        owner.cuts -= 1
        self.close_connection = True  # without an answer, in the middle of the body
        return None

    def _status(self, upload: str) -> dict[str, str]:
        return {"Location": self.path, "Range": f"0-{len(self.owner.received[upload]) - 1}"}


class ResumableUploads(HttpService):
    """Breaks the first ``cuts`` pieces off after ``cut_bytes``; with ``damaged`` what it says to
    have of them is not what was sent."""

    def __init__(self, target: str, *, cuts: int, cut_bytes: int, damaged: bool = False) -> None:
        self.target = target
        self.cuts = cuts
        self.cut_bytes = cut_bytes
        self.damaged = damaged
        self.lock = threading.Lock()
        self.received: dict[str, bytes] = {}
        self.pieces: list[Piece] = []
        self.asked = 0
        super().__init__(_Handler, owner=self)

    def altered(self, data: bytes) -> bytes:
        """Return what is kept of a piece that broke off."""
        return bytes(len(data)) if self.damaged else data
