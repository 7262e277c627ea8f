"""Writes Docker's json-file log: one JSON object a line with ``log``, ``stream`` and ``time``.

Lines longer than 16 KiB are written as several entries, only the last of which ends in a newline;
all of them carry the first one's time. The monitor writes; ``deskd.logs`` reads.
"""

from __future__ import annotations

import contextlib
import os
import time
from json.encoder import encode_basestring
from typing import TYPE_CHECKING

from deskd.runtime.plan import LogSpec

if TYPE_CHECKING:
    from deskd.runtime.buffered_log import BufferedLog
    from deskd.runtime.log_compression import Compression

LINE_BYTES = 16 * 1024


class JsonLog:
    """The log of one container. A write that fails (a full disk) loses its lines, is counted in
    ``lost_lines`` and told in the log as soon as there is room; it never stops the container."""

    encoding = "utf-8"

    def __init__(self, spec: LogSpec) -> None:
        self._spec = spec
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size
        self._rest: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        self._partial_time = {"stdout": "", "stderr": ""}
        self._second = -1
        self._second_text = ""
        self._compression: Compression | None = None
        self.lost_lines = 0
        attributes = ",".join(f"{_text(k)}:{_text(v)}" for k, v in spec.extra)
        self._attributes = f',"attrs":{{{attributes}}}' if attributes else ""

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self._spec.path, flags, 0o640)

    def write(self, stream: str, data: bytes) -> None:
        """Take output of ``stdout`` or ``stderr`` as it came."""
        if self._rest[stream]:
            data = self._rest[stream] + data
        now = self._now()
        entries: list[str] = []
        lines = data.split(b"\n")
        rest = lines.pop()
        for line in lines:
            if len(line) > LINE_BYTES or self._partial_time[stream]:
                self._long_line(entries, stream, line, now, complete=True)
            else:
                entries.append(self._entry(line, "\\n", stream, now))
        if len(rest) >= LINE_BYTES:
            rest = self._long_line(entries, stream, rest, now, complete=False)
        self._rest[stream] = rest
        if entries:
            self._append_all(entries)

    def _long_line(
        self, entries: list[str], stream: str, line: bytes, now: str, *, complete: bool
    ) -> bytes:
        """Cut a line into entries; return what is left of an incomplete one."""
        when = self._partial_time[stream] or now
        position = 0
        while len(line) - position > LINE_BYTES or (
            not complete and len(line) - position == LINE_BYTES
        ):
            part = line[position : position + LINE_BYTES]
            entries.append(self._entry(part, "", stream, when))
            position += LINE_BYTES
        if complete:
            entries.append(self._entry(line[position:], "\\n", stream, when))
            self._partial_time[stream] = ""
            return b""
        if position:
            self._partial_time[stream] = when
        return line[position:]

    def _entry(self, line: bytes, end: str, stream: str, when: str) -> str:
        text = encode_basestring(line.decode("utf-8", "replace"))
        return (
            f'{{"log":{text[:-1]}{end}","stream":"{stream}"{self._attributes},"time":"{when}"}}\n'
        )

    def _now(self) -> str:
        """Write the time in RFC 3339 with nanoseconds."""
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if seconds != self._second:
            self._second = seconds
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{self._second_text}.{nanoseconds:09d}Z"

    def _append_all(self, entries: list[str]) -> None:
        """Append entries; a file is full with the entry that reaches its limit, as in Docker."""
        data = "".join(entries).encode(self.encoding)
        limit = self._spec.max_size_bytes
        if not limit or self._size + len(data) <= limit:
            self._append(data, len(entries))
            return
        part: list[bytes] = []
        size = 0
        for entry in entries:
            part.append(entry.encode(self.encoding))
            size += len(part[-1])
            if (self._size if self._size < limit else 0) + size >= limit:
                self._append(b"".join(part), len(part))
                part, size = [], 0
        if part:
            self._append(b"".join(part), len(part))

    def _append(self, data: bytes, count: int) -> None:
        limit = self._spec.max_size_bytes
        try:
            if limit and self._size >= limit:
                self._rotate()
            if self.lost_lines:
                text = f"{self.lost_lines} log lines were lost: the log could not be written\n"
                note = self._entry(text.rstrip("\n").encode(), "\\n", "stderr", self._now())
                data = note.encode(self.encoding) + data
            self._write_all(data)
            self.lost_lines = 0
        except OSError:
            self.lost_lines += count

    def _write_all(self, data: bytes) -> None:
        start, view = self._size, memoryview(data)
        try:
            while view:
                written = os.write(self._fd, view)
                self._size += written
                view = view[written:]
        except OSError:
            # Take a half-written line back, so that the file stays one object a line.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)
                self._size = start
            raise

    def _rotate(self) -> None:
        path, count = self._spec.path, self._spec.max_files
        if count == 1:
            os.ftruncate(self._fd, 0)
            self._size = 0
            return
        self.settle()
        for number in range(count - 1, 0, -1):
            for end in ("", ".gz"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{path}.{number}{end}")
                source = path if number == 1 else f"{path}.{number - 1}{end}"
                with contextlib.suppress(FileNotFoundError):
                    os.replace(source, f"{path}.{number}{end}")
                if number == 1:
                    break
        os.close(self._fd)
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size
        if self._spec.compress:
            from deskd.runtime.log_compression import Compression

            self._compression = Compression(f"{path}.1")

    def settle(self) -> None:
        """Wait until a rotated file is packed."""
        compression, self._compression = self._compression, None
        if compression is not None:
            compression.wait()

    def close(self) -> None:
        """Write what did not end in a newline, and close."""
        for stream, rest in self._rest.items():
            if rest:
                when = self._partial_time[stream] or self._now()
                self._append_all([self._entry(rest, "", stream, when)])
            self._rest[stream] = b""
        os.close(self._fd)


def open_log(spec: LogSpec) -> JsonLog | BufferedLog:
    """Open the log of any driver. What most containers do without is imported only here."""
    log: JsonLog
    if spec.driver == "local":
        from deskd.runtime.local_log import LocalLog

        log = LocalLog(spec)
    else:
        log = JsonLog(spec)
    if not spec.buffer_bytes:
        return log
    from deskd.runtime.buffered_log import BufferedLog

    return BufferedLog(log, spec.buffer_bytes)


def _text(value: str) -> str:
    return encode_basestring(value)
