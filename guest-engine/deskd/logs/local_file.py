"""Reading logs of the driver ``local``; ``deskd.runtime.local_log`` tells the format."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from deskd.domain.times import rfc3339
from deskd.logs.json_file import Entry

log = logging.getLogger(__name__)

_HEADER_BYTES = 18
_STREAMS = {b"o": "stdout", b"e": "stderr"}


def parse_line(line: bytes) -> Entry | None:
    """Parse one line; a damaged one (cut by a power failure) is None."""
    stream = _STREAMS.get(line[:1])
    try:
        time_ns = int(line[1:17], 16)
    except ValueError:
        stream = None
    if stream is None or len(line) < _HEADER_BYTES:
        log.warning("a damaged log line of %d bytes is left out", len(line))
        return None
    end = "" if line[17:18] == b"+" else "\n"
    text = line[_HEADER_BYTES:].decode("utf-8", "surrogateescape")
    return Entry(log=f"{text}{end}", stream=stream, time=rfc3339(time_ns))


def entries(lines: list[bytes]) -> Iterator[Entry]:
    """Parse lines, leaving damaged ones out."""
    for line in lines:
        entry = parse_line(line) if line else None
        if entry is not None:
            yield entry
