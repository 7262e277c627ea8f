"""Streams of the Engine API: multiplexed output, attached terminals, progress and event lines.

Multiplexing is the one of ``ContainerAttach`` in the Docker Engine API: an eight-byte header
(stream number, three zero bytes, big-endian length) before each piece of output.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from desk.engine.wire import HttpConnection, ProtocolError, Response
from desk.errors import EngineError

STDOUT = 1
STDERR = 2
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"

_HEADER_SIZE = 8
_READ_SIZE = 64 * 1024


class Frame(NamedTuple):
    """A piece of output: ``stream`` is 1 for standard output (and terminals), 2 for errors."""

    stream: int
    data: bytes


def demultiplex(pieces: Iterable[bytes], *, whole: bool = False) -> Iterator[Frame]:
    """Yield the frames in a multiplexed stream as they arrive, long ones in several parts unless
    they are wanted ``whole``."""
    buffer = bytearray()
    stream = remaining = 0
    for piece in pieces:
        buffer += piece
        while buffer:
            if not remaining:
                if len(buffer) < _HEADER_SIZE:
                    break
                stream = buffer[0]
                if stream > 3 or buffer[1:4] != b"\0\0\0":
                    raise ProtocolError("the engine sent output that is not multiplexed")
                remaining = int.from_bytes(buffer[4:_HEADER_SIZE], "big")
                del buffer[:_HEADER_SIZE]
                continue
            if whole and len(buffer) < remaining:
                break
            data = bytes(buffer[:remaining])
            del buffer[: len(data)]
            remaining -= len(data)
            yield Frame(STDERR if stream in (2, 3) else STDOUT, data)


class OutputStream:
    """Output of a container as frames, such as its logs. ``close`` may come from any thread."""

    def __init__(self, response: Response, *, multiplexed: bool) -> None:
        self._response = response
        self._multiplexed = multiplexed

    def __iter__(self) -> Iterator[Frame]:
        return self._frames(whole=False)

    def whole_frames(self) -> Iterator[Frame]:
        """Yield each frame in one part: of a log, the engine sends one for each line. A terminal's
        output comes as it arrives."""
        return self._frames(whole=True)

    def _frames(self, *, whole: bool) -> Iterator[Frame]:
        pieces = self._response.pieces()
        if self._multiplexed:
            return demultiplex(pieces, whole=whole)
        return (Frame(STDOUT, piece) for piece in pieces)

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AttachedStream:
    """Both directions of an attached process: iterate for its output, ``write`` to its input.

    One thread may read while another writes; ``close`` may come from any thread and detaches
    without ending the process.
    """

    def __init__(self, http: HttpConnection, *, multiplexed: bool) -> None:
        self._http = http
        self.multiplexed = multiplexed

    def __iter__(self) -> Iterator[Frame]:
        pieces = iter(self._http.receive, b"")
        if self.multiplexed:
            return demultiplex(pieces)
        return (Frame(STDOUT, piece) for piece in pieces)

    def write(self, data: bytes) -> None:
        """Send input; raises ``EngineUnreachable`` when the process's side is gone."""
        self._http.write(data)

    def close_write(self) -> None:
        """Tell the process that its input has ended; output goes on."""
        self._http.shutdown_write()

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> AttachedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ByteStream:
    """A body of bytes, such as a tar archive. ``close`` may come from any thread."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._pieces = response.pieces()
        self._rest = b""

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Docker-Container-Path-Stat": self._response.headers.get(PATH_STAT_HEADER)}

    def __iter__(self) -> Iterator[bytes]:
        if self._rest:
            rest, self._rest = self._rest, b""
            yield rest
        yield from self._pieces

    def read(self, size: int = -1) -> bytes:
        """Read like a file, for ``tarfile``: at most ``size`` bytes, all when negative."""
        if size < 0:
            return b"".join(self)
        while len(self._rest) < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


PATH_STAT_HEADER = "X-Docker-Container-Path-Stat"


class JsonStream:
    """JSON objects as they arrive, such as events. ``close`` may come from any thread and ends
    the iteration."""

    def __init__(self, response: Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return decode_objects(self._response.pieces())

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> JsonStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProgressStream(JsonStream):
    """Docker's progress objects; one that tells of an error is raised as ``EngineError``."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for message in super().__iter__():
            detail = message.get("errorDetail")
            text = message.get("error") or (
                detail.get("message") if isinstance(detail, dict) else None
            )
            if text:
                self.close()
                code = detail.get("code") if isinstance(detail, dict) else None
                raise EngineError(str(text), status=code if isinstance(code, int) else 500)
            yield message


def decode_objects(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the objects in a stream of JSON texts, which line ends or nothing separate."""
    decoder = json.JSONDecoder()
    buffer = b""
    for piece in pieces:
        buffer += piece
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            yield from _objects_in(decoder, line)
    yield from _objects_in(decoder, buffer)


def _objects_in(decoder: json.JSONDecoder, line: bytes) -> Iterator[dict[str, Any]]:
    text = line.decode("utf-8", "replace").strip()
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except ValueError as error:
            raise ProtocolError(f"the engine sent malformed JSON: {text[:80]!r}") from error
        yield value
        text = text[end:].lstrip()
