"""Bytes between the event loop and the threads that do an image's blocking work."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

from deskd import errors

R = TypeVar("R")

FEED_BYTES = 4 * 1024 * 1024
"""How far a client may be ahead of the thread that reads its upload."""

DROPPED_BYTES = 64 * 1024 * 1024
"""How much of an upload is still read when its result is known."""

QUEUE_CHUNKS = 16


class Aborted(errors.DeskdError):
    """The other side went away (a client closed its connection)."""


class ByteFeed:
    """A blocking ``read`` for a thread, filled by the event loop from an async source."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._condition = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._ended = False
        self._failure: BaseException | None = None
        self._room = asyncio.Event()
        self._room.set()

    async def pump(self, source: AsyncIterator[bytes], reader: asyncio.Future[Any]) -> None:
        """Carry ``source`` over until it ends or the thread behind ``reader`` is done.

        When the thread ends early (the archive is damaged), a moderate rest of the source is
        read and dropped: many clients look at the answer only after they have sent all.
        """
        reader.add_done_callback(lambda _: self._room.set())
        dropped_bytes = 0
        try:
            async for chunk in source:
                if reader.done():
                    dropped_bytes += len(chunk)
                    if dropped_bytes > DROPPED_BYTES:
                        break
                    continue
                if not chunk:
                    continue
                with self._condition:
                    self._chunks.append(chunk)
                    self._buffered_bytes += len(chunk)
                    if self._buffered_bytes >= FEED_BYTES:
                        self._room.clear()
                    self._condition.notify()
                if not reader.done():
                    await self._room.wait()
        except BaseException as error:
            self.abort(error)
            raise
        with self._condition:
            self._ended = True
            self._condition.notify()

    def abort(self, reason: BaseException | None = None) -> None:
        """Make the thread's next ``read`` fail; idempotent."""
        with self._condition:
            if not self._ended:
                self._failure = reason or Aborted("the upload was given up")
            self._condition.notify()

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes, ``b""`` at the end; blocks. Called by the thread."""
        with self._condition:
            while not self._chunks:
                if self._failure is not None:
                    raise Aborted("the upload ended before it was complete") from self._failure
                if self._ended:
                    return b""
                self._condition.wait()
            chunk = self._chunks.popleft()
            if 0 <= size < len(chunk):
                self._chunks.appendleft(chunk[size:])
                chunk = chunk[:size]
            self._buffered_bytes -= len(chunk)
            wake = self._buffered_bytes < FEED_BYTES // 2 and not self._room.is_set()
        if wake:
            self._loop.call_soon_threadsafe(self._room.set)
        return chunk


async def feed_thread(source: AsyncIterator[bytes], work: Callable[[ByteFeed], R]) -> R:
    """Run ``work`` in a thread on the bytes of ``source``; it has ended when this returns."""
    feed = ByteFeed(asyncio.get_running_loop())
    working = asyncio.ensure_future(asyncio.to_thread(work, feed))
    try:
        await feed.pump(source, working)
        return await working
    except BaseException:
        feed.abort()
        await asyncio.wait([working])
        raise


class ByteQueue:
    """An async iterator over what a thread writes; the thread waits when it is far ahead."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._chunks: queue.Queue[bytes] = queue.Queue(QUEUE_CHUNKS)
        self._ready = asyncio.Event()
        self._stopped = False
        self._finished = False

    def run(self, work: Callable[[Callable[[bytes], None]], None]) -> None:
        """Call ``work`` with the sink, in the thread; the iteration ends when it returns."""
        try:
            work(self._write)
        except Aborted:
            pass
        finally:
            self._finished = True
            self._loop.call_soon_threadsafe(self._ready.set)

    def _write(self, data: bytes) -> None:
        while not self._stopped:
            try:
                self._chunks.put(data, timeout=0.5)
            except queue.Full:
                continue
            self._loop.call_soon_threadsafe(self._ready.set)
            return
        raise Aborted("the download was given up")

    def stop(self) -> None:
        """Make the thread's next write fail."""
        self._stopped = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            try:
                yield self._chunks.get_nowait()
                continue
            except queue.Empty:
                if self._finished:
                    if self._chunks.empty():
                        return
                    continue
            await self._ready.wait()
            self._ready.clear()


class Begun:
    """An async iterator of which the first piece was taken already, so that what fails at the
    beginning fails before an answer begins. Close it in every case."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        self._first: bytes | None = first
        self._rest = rest

    def __aiter__(self) -> Begun:
        return self

    async def __anext__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        """Close what is behind it, begun or not."""
        await self._rest.aclose()


async def begun(chunks: AsyncGenerator[bytes]) -> Begun:
    """Take the first of ``chunks``, of which there must be one."""
    return Begun(await anext(chunks), chunks)


async def written_by_thread(
    work: Callable[[Callable[[bytes], None]], None],
) -> AsyncGenerator[bytes]:
    """Yield what ``work``, in a thread, gives to its sink. Who stops early closes this, which ends
    the work and waits for it."""
    chunks = ByteQueue(asyncio.get_running_loop())
    writing = asyncio.create_task(asyncio.to_thread(chunks.run, work))
    try:
        async for chunk in chunks:
            yield chunk
        await writing
    finally:
        chunks.stop()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
