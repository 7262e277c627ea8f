"""Docker's multiplexed streams: frames of 8 bytes of header (stream, length) and the data."""

from __future__ import annotations

from collections.abc import Iterator

HEADER_BYTES = 8


def frame(stream_number: int, data: bytes) -> bytes:
    """Return data as a piece of a stream: 1 is stdout, 2 stderr."""
    return bytes((stream_number, 0, 0, 0)) + len(data).to_bytes(4, "big") + data


class Unframer:
    """Takes the frames away from a stream that comes in pieces of any size."""

    def __init__(self) -> None:
        self._header = b""
        self._missing_bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Return the data inside, piece by piece, without waiting for whole frames."""
        position = 0
        while position < len(data):
            if not self._missing_bytes:
                wanted = HEADER_BYTES - len(self._header)
                self._header += data[position : position + wanted]
                position += wanted
                if len(self._header) < HEADER_BYTES:
                    return
                self._missing_bytes = int.from_bytes(self._header[4:], "big")
                self._header = b""
                continue
            part = data[position : position + self._missing_bytes]
            position += len(part)
            self._missing_bytes -= len(part)
            yield part
