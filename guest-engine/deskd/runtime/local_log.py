"""Writes the log of the driver ``local``: small, and byte for byte what the program wrote.

An entry is one line: ``o`` or ``e`` (the stream), 16 hexadecimal digits (nanoseconds since the
epoch), a space or ``+`` (more of the same line follows), and the output itself.
"""

from __future__ import annotations

import time

from deskd.runtime.json_log import JsonLog


class LocalLog(JsonLog):
    """Cuts, rotates and survives full disks as the json-file log does; only the entries differ."""

    encoding = "latin-1"  # carries every byte as it is

    def _entry(self, line: bytes, end: str, stream: str, when: str) -> str:
        mark = " " if end else "+"
        return f"{stream[3]}{when}{mark}{line.decode('latin-1')}\n"

    def _now(self) -> str:
        return f"{time.time_ns():016x}"
