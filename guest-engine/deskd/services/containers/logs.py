"""``docker logs``: a container's log rendered for the wire, once or as it grows."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

from deskd.domain.frames import frame
from deskd.domain.times import parse_rfc3339
from deskd.errors import InvalidArgument, Unsupported
from deskd.kernel.inotify import Watch
from deskd.logs import json_file, local_file
from deskd.record import Record
from deskd.services.containers.registry import Container, ContainerRegistry

# inotify tells at once; this is for file systems where it does not work.
FALLBACK_POLL_S = 2.0


class LogOptions(Record):
    """What of the log, and how. Times are nanoseconds; ``tail`` None means all."""

    stdout: bool = True
    stderr: bool = True
    follow: bool = False
    timestamps: bool = False
    details: bool = False
    since_ns: int | None = None
    until_ns: int | None = None
    tail: int | None = None


def parse_tail(text: str) -> int | None:
    """Read the ``tail`` parameter: a number, or ``all``; like Docker, nonsense means all."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if number >= 0 else None


class Logs:
    """Reads containers' logs."""

    def __init__(self, registry: ContainerRegistry) -> None:
        self._registry = registry

    def read(self, reference: str, options: LogOptions) -> AsyncIterator[bytes]:
        """Return the log, framed unless the container has a terminal.

        Raises ``NotFound``, ``InvalidArgument`` where no stream is asked for, and
        ``Unsupported`` where the log's driver cannot be read.
        """
        container = self._registry.get(reference)
        if not (options.stdout or options.stderr):
            raise InvalidArgument("Bad parameters: you must choose at least one stream")
        if container.record.host_config.log_config.type == "none":
            raise Unsupported("configured logging driver does not support reading")
        return self._read(container, options)

    async def _read(self, container: Container, options: LogOptions) -> AsyncIterator[bytes]:
        path = container.record.log_path
        local = container.record.host_config.log_config.type == "local"
        parse_lines = local_file.entries if local else json_file.entries
        changed = _Changes(container, path) if options.follow and container.active else None
        reader = await asyncio.to_thread(json_file.Reader, path, tail=options.tail)
        try:
            while True:
                # Asked before the reading: what the process wrote before its end is in the file.
                over = changed is None or not container.active
                if changed is not None:
                    changed.clear()
                while lines := await asyncio.to_thread(reader.read_lines):
                    entries = parse_lines(lines)
                    rendered, past_end = _render(entries, options, tty=container.record.config.tty)
                    if rendered:
                        yield rendered
                    if past_end:
                        return
                if over or changed is None:
                    return
                await changed.wait()
        finally:
            reader.close()
            if changed is not None:
                changed.close()


class _Changes:
    """Wakes a follower when the log grows or the container's process ends."""

    def __init__(self, container: Container, path: str) -> None:
        self._container = container
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._ended = container.next_exit()
        self._ended.add_done_callback(lambda _: self._event.set())
        self._watch = Watch(os.path.dirname(path))
        self._loop.add_reader(self._watch.fileno(), self._event.set)

    def clear(self) -> None:
        self._watch.drain()
        self._event.clear()
        if self._ended.done() and self._container.active:
            self._ended = self._container.next_exit()
            self._ended.add_done_callback(lambda _: self._event.set())

    async def wait(self) -> None:
        try:
            await asyncio.wait_for(self._event.wait(), FALLBACK_POLL_S)
        except TimeoutError:
            return

    def close(self) -> None:
        self._loop.remove_reader(self._watch.fileno())
        self._watch.close()
        self._ended.cancel()


def _render(
    entries: Iterator[json_file.Entry], options: LogOptions, *, tty: bool
) -> tuple[bytes, bool]:
    """Return the wire form of ``entries`` and whether the end of the wanted time was passed."""
    parts: list[bytes] = []
    timed = options.since_ns is not None or options.until_ns is not None
    for entry in entries:
        if timed:
            moment = parse_rfc3339(entry.time)
            if options.since_ns is not None and moment < options.since_ns:
                continue
            if options.until_ns is not None and moment > options.until_ns:
                return b"".join(parts), True
        if entry.stream == "stderr":
            if not options.stderr:
                continue
        elif not options.stdout:
            continue
        text = entry.log
        if options.details:
            text = f"{','.join(f'{k}={v}' for k, v in sorted(entry.attrs.items()))} {text}"
        if options.timestamps:
            text = f"{_nine_digits(entry.time)} {text}"
        data = text.encode("utf-8", "surrogateescape")
        parts.append(data if tty else frame(entry.stream_number, data))
    return b"".join(parts), False


def _nine_digits(moment: str) -> str:
    head, dot, fraction = moment.removesuffix("Z").partition(".")
    return f"{head}.{fraction.ljust(9, '0')}Z" if dot else f"{head}.000000000Z"
