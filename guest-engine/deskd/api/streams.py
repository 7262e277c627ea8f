"""Joining a hijacked connection to a process's stdio: both directions, half-close, detach keys."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from deskd.api.http import Duplex
from deskd.domain.frames import Unframer, frame
from deskd.services.ports import AttachStream

RAW_STREAM = "application/vnd.docker.raw-stream"
MULTIPLEXED_STREAM = "application/vnd.docker.multiplexed-stream"
GONE_CHECK_S = 5.0


def stream_type(version: tuple[int, int], *, tty: bool) -> str:
    """Return the content type of a process's output (multiplexed frames are named since 1.42)."""
    return MULTIPLEXED_STREAM if version >= (1, 42) and not tty else RAW_STREAM


class DetachFilter:
    """Finds the detach sequence in typed bytes; a part of it is held back until it is decided."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._seen = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return the bytes to pass on and whether the user asked to detach."""
        if self._seen == 0 and self._sequence[:1] not in data:
            return data, False
        passed = bytearray()
        for value in data:
            if value == self._sequence[self._seen]:
                self._seen += 1
                if self._seen == len(self._sequence):
                    return bytes(passed), True
            else:
                passed += self._sequence[: self._seen]
                self._seen = 1 if value == self._sequence[0] else 0
                if not self._seen:
                    passed.append(value)
        return bytes(passed), False


def framed(data: bytes) -> bytes:
    """Return a terminal's output as a piece of stdout."""
    return frame(1, data)


def unframed() -> Callable[[bytes], bytes]:
    """Return what takes the frames off a stream, piece by piece."""
    unframer = Unframer()
    return lambda data: b"".join(unframer.feed(data))


async def relay(
    client: Duplex,
    stream: AttachStream,
    *,
    stdin: bool,
    detach_keys: bytes | None = None,
    on_detach: Callable[[], None] = lambda: None,
    convert: Callable[[bytes], bytes] | None = None,
) -> None:
    """Copy until the process's output ends or the user detaches; closes ``stream``. ``convert``
    makes of the output's pieces what the client reads.

    The end of the client's half closes the process's stdin only: its output goes on.
    """
    output = asyncio.create_task(_copy_output(client, stream, convert))
    typed = asyncio.create_task(_copy_input(client, stream, stdin=stdin, detach_keys=detach_keys))
    try:
        await asyncio.wait({output, typed}, return_when=asyncio.FIRST_COMPLETED)
        if typed.done() and not typed.cancelled() and typed.exception() is None and typed.result():
            on_detach()
            return
        while not output.done() and not client.gone():
            # A silent process would keep a client that left for ever.
            await asyncio.wait({output}, timeout=GONE_CHECK_S)
        if output.done():
            output.result()
    finally:
        for task in (output, typed):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await task
        await stream.close()


async def _copy_output(
    client: Duplex, stream: AttachStream, convert: Callable[[bytes], bytes] | None
) -> None:
    if convert is not None:
        while data := await stream.read():
            await client.write(convert(data))
        return
    sink = await client.sink()
    if sink is None:
        while data := await stream.read():
            await client.write(data)
        return
    try:
        await stream.pour(sink)
    finally:
        os.close(sink)


async def _copy_input(
    client: Duplex, stream: AttachStream, *, stdin: bool, detach_keys: bytes | None
) -> bool:
    """Return whether the user asked to detach."""
    keys = DetachFilter(detach_keys) if detach_keys else None
    try:
        while data := await client.read():
            if not stdin:
                continue
            if keys is not None:
                data, detached = keys.feed(data)
                if data:
                    await stream.write(data)
                if detached:
                    return True
            else:
                await stream.write(data)
        if stdin:
            await stream.close_stdin()
    except ConnectionError:
        # The process no longer reads, or the client is gone: the output decides when it is over.
        return False
    return False
