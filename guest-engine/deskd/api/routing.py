"""Finding the handler of a request: a table of routes with their minimum API versions.

Handlers are named, not imported: their module is loaded by the first request that needs it, so
that a starting engine answers sooner.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from importlib import import_module
from typing import Any

from deskd.api.http import Answer, Request
from deskd.errors import InvalidArgument, NotFound
from deskd.record import Record
from deskd.services.version import API_VERSION, MIN_API_VERSION, version_text

Handler = Callable[[Any, Request], Awaitable[Answer]]


# WORKAROUND: skopeo before 1.14.2, podman and buildah of its time (Debian 12 has them) say 1.22 to
# every engine: https://github.com/containers/image/issues/2259. Nothing has changed here since.
_MOVES_OF_IMAGES = frozenset({"/images/get", "/images/load"})
_OLDEST_MOVER = (1, 22)


class PageNotFound(NotFound):
    """No route has this method and path."""


class Route(Record):
    """``path`` has ``{name}`` for one segment and ``{name...}`` for one or more.

    ``handler`` is ``module:function`` below ``deskd.api.routes``. The answer of a ``durable`` route
    waits for the disk.
    """

    method: str
    path: str
    handler: str
    since: tuple[int, int] = MIN_API_VERSION
    durable: bool = False


class Router:
    """Matches method and path against the table, in its order."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._by_start: dict[tuple[str, str], list[tuple[tuple[str, ...], Route]]] = {}
        for route in routes:
            segments = tuple(route.path.strip("/").split("/"))
            self._by_start.setdefault((route.method, segments[0]), []).append((segments, route))
        self._loaded: dict[str, Handler] = {}

    def find(
        self, method: str, path: str, version: tuple[int, int]
    ) -> tuple[Handler, dict[str, str]]:
        """Return the handler and what the pattern captured. Raises ``NotFound``."""
        given = tuple(path.strip("/").split("/"))
        for segments, route in self._by_start.get((method, given[0]), ()):
            values = _match(segments, given)
            if values is not None and version >= route.since:
                return self.load(route), values
        raise PageNotFound("page not found")

    def load(self, route: Route) -> Handler:
        """Import the handler of ``route``."""
        handler = self._loaded.get(route.handler)
        if handler is None:
            module, _, function = route.handler.partition(":")
            found: Handler = getattr(import_module(f"deskd.api.routes.{module}"), function)
            handler = _durable(found) if route.durable else found
            self._loaded[route.handler] = handler
        return handler


def _durable(handler: Handler) -> Handler:
    """Return a handler whose answer tells of nothing that a loss of power would undo."""

    @wraps(handler)
    async def answer(engine: Any, request: Request) -> Answer:
        found = await handler(engine, request)
        await engine.durability.settle()
        return found

    return answer


def _match(pattern: tuple[str, ...], given: tuple[str, ...]) -> dict[str, str] | None:
    values: dict[str, str] = {}
    for index, part in enumerate(pattern):
        if part.endswith("...}"):
            tail = pattern[index + 1 :]
            end = len(given) - len(tail)
            if end <= index or given[end:] != tail:
                return None
            values[part[1:-4]] = "/".join(given[index:end])
            return values if all(values.values()) else None
        if index >= len(given):
            return None
        if part.startswith("{"):
            if not given[index]:
                return None
            values[part[1:-1]] = given[index]
        elif part != given[index]:
            return None
    return values if len(pattern) == len(given) else None


def split_version(path: str) -> tuple[tuple[int, int], str]:
    """Take ``/v1.NN`` off a path; no prefix means the newest version.

    Raises ``InvalidArgument`` with Docker's texts for a version out of range.
    """
    if not path.startswith("/v"):
        return API_VERSION, path
    prefix, slash, rest = path[2:].partition("/")
    major, dot, minor = prefix.partition(".")
    if not (dot and major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit()):
        return API_VERSION, path
    version = (int(major[:6]), int(minor[:6]))
    if version >= _OLDEST_MOVER and slash + rest.partition("?")[0] in _MOVES_OF_IMAGES:
        version = max(version, MIN_API_VERSION)
    if version < MIN_API_VERSION:
        raise InvalidArgument(
            f"client version {major}.{minor} is too old. Minimum supported API version is "
            f"{version_text(MIN_API_VERSION)}, please upgrade your client to a newer version"
        )
    if version > API_VERSION:
        raise InvalidArgument(
            f"client version {major}.{minor} is too new. Maximum supported API version is "
            f"{version_text(API_VERSION)}"
        )
    return version, slash + rest
