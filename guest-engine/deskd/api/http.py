"""What handlers get and give: requests with streamed bodies, and the three kinds of answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote_plus

import msgspec

from deskd.api.json_keys import may_differ, with_field_names
from deskd.domain.foreign_json import FOREIGN_JSON_ERRORS
from deskd.errors import InvalidArgument
from deskd.record import Record, field

MAX_JSON_BODY_BYTES = 8 * 1024 * 1024

T = TypeVar("T")


class Duplex(Protocol):
    """A client's connection after it was taken over from HTTP: bytes both ways."""

    async def read(self) -> bytes:
        """Return what the client sent; ``b""`` once it ended its half."""

    async def write(self, data: bytes) -> None:
        """Send; waits while the client is slow. Raises ``ConnectionError`` when it has gone."""

    async def sink(self) -> int | None:
        """Return a descriptor to write to directly once all that was written has been sent, to be
        closed by the caller; ``None`` where bytes do not leave as they are."""

    def gone(self) -> bool:
        """Say whether the client has closed both halves; on TCP that shows only by writing."""


class Query:
    """The parameters of a URL, read as Docker reads them."""

    def __init__(self, text: str) -> None:
        self._values: dict[str, list[str]] = {}
        for pair in text.split("&"):
            if pair:
                name, _, value = pair.partition("=")
                self._values.setdefault(unquote_plus(name), []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str = "") -> str:
        values = self.texts(name)
        return values[0] if values else default

    def texts(self, name: str) -> list[str]:
        return [unquote_plus(value) for value in self._values.get(name, ())]

    def path(self, name: str) -> str:
        """Return a path of a file system, whose bytes may be no UTF-8 (``os.fsdecode``)."""
        values = self._values.get(name, [""])
        return unquote_plus(values[0], errors="surrogateescape")

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Everything but an empty value, 0, no, false and none is true (as moby's BoolValue)."""
        if name not in self._values:
            return default
        value = self.text(name).strip().lower()
        return value not in ("", "0", "no", "false", "none")

    def integer(self, name: str, default: int | None = None) -> int | None:
        value = self.text(name)
        if not value:
            return default
        try:
            return int(value)
        except ValueError:
            raise InvalidArgument(
                f"the parameter {name} must be a whole number, not {value!r}"
            ) from None


class Request(Record, frozen=False):
    """One request. ``path_values`` holds what the route's pattern captured."""

    method: str
    path: str
    query: Query
    headers: Mapping[str, str]  # lower-case names
    version: tuple[int, int]
    body: AsyncIterator[bytes]
    path_values: dict[str, str] = field(default_factory=dict)

    async def read_body(self, limit_bytes: int = MAX_JSON_BODY_BYTES) -> bytes:
        """Read all of the body. Raises ``InvalidArgument`` beyond ``limit_bytes``."""
        parts: list[bytes] = []
        size = 0
        async for part in self.body:
            size += len(part)
            if size > limit_bytes:
                raise InvalidArgument(f"the request's body is larger than {limit_bytes} bytes")
            parts.append(part)
        return b"".join(parts)

    async def json(self, kind: type[T]) -> T:
        """Read the body as JSON of ``kind``. Raises ``InvalidArgument`` saying what is wrong."""
        return decode(await self.json_text(), kind)

    async def json_text(self) -> bytes:
        """Read a body that must hold JSON, unparsed."""
        body = await self.read_body()
        self._check_content_type()
        if not body.strip():
            raise InvalidArgument("invalid JSON: got EOF while reading request body")
        return body

    async def optional_json(self, kind: type[T], default: T) -> T:
        """Like ``json``, where no body at all means ``default``."""
        body = await self.read_body()
        if not body.strip():
            return default
        self._check_content_type()
        return decode(body, kind)

    def _check_content_type(self) -> None:
        given = self.headers.get("content-type", "")
        media_type = given.partition(";")[0].strip().lower()
        if media_type not in ("application/json", "") or (not given and self.version >= (1, 44)):
            raise InvalidArgument(
                f"unsupported Content-Type header ({given}): must be 'application/json'"
            )

    @property
    def wants_upgrade(self) -> bool:
        """True where the client asked for ``101 UPGRADED`` before it takes the connection over."""
        return bool(self.headers.get("upgrade"))


_MAPS_WITH_NULLS = frozenset(
    ("ExposedPorts", "Volumes", "PortBindings", "EndpointsConfig", "Options", "Labels")
)


def decode(body: bytes, kind: type[T]) -> T:
    """Decode JSON the way Go does: ``null`` leaves a field at its zero value, and a key may differ
    from the field's name in case.

    Raises ``InvalidArgument`` that says what is wrong and where.
    """
    try:
        if b"\\u0000" in body:
            _check_texts(msgspec.json.decode(body))
        if may_differ(body):
            named = with_field_names(msgspec.json.decode(body), kind)
            return msgspec.convert(_without_nulls(named), type=kind)
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError:
            # Python clients send null for every unset field; only they pay for a second pass.
            return msgspec.convert(_without_nulls(msgspec.json.decode(body)), type=kind)
    except FOREIGN_JSON_ERRORS as error:
        raise InvalidArgument(f"invalid JSON: {error}") from error


def _check_texts(value: Any) -> None:
    """Raise ``InvalidArgument`` for a text with a zero byte: no path, name or argument has one."""
    if isinstance(value, str) and "\0" in value:
        raise InvalidArgument(f"invalid JSON: the text {value[:100]!r} holds a zero byte")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_texts(key)
            _check_texts(item)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item)


def _without_nulls(value: Any, *, keep: bool = False) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_nulls(item, keep=key in _MAPS_WITH_NULLS)
            for key, item in value.items()
            if keep or item is not None
        }
    if isinstance(value, list):
        return ["" if item is None else _without_nulls(item) for item in value]
    return value


class Response(Record):
    """A complete answer."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Stream(Record):
    """An answer whose body comes piece by piece. The server closes ``chunks`` in every case."""

    chunks: AsyncIterator[bytes]
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Hijack(Record):
    """An answer that takes the connection over; ``run`` talks until it returns.

    ``head`` is the status line and the headers, where they are not those of Docker's streams.
    """

    run: Callable[[Duplex], Awaitable[None]]
    content_type: str = "application/vnd.docker.raw-stream"
    head: tuple[str, ...] = ()


Answer = Response | Stream | Hijack
NO_CONTENT = Response(204, content_type="")


def json_response(
    value: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()
) -> Response:
    """Render ``value`` (anything msgspec encodes) as a JSON answer."""
    return Response(status, msgspec.json.encode(value) + b"\n", headers=headers)


async def json_lines(values: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """Encode a stream of objects, one line each."""
    encode = msgspec.json.encode
    try:
        async for value in values:
            yield encode(value) + b"\n"
    finally:
        close = getattr(values, "aclose", None)
        if close is not None:
            await close()


OUT_OF_MEMORY = "Desk-Out-Of-Memory"
"""A header of the list of containers: how many ran out of memory in their last run."""

WARNING = "Desk-Warning"
"""A header with a sentence for the person who asked for what was done."""
