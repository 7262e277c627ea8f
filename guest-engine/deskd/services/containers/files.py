"""A container's files: ``cp`` both ways, ``export`` and ``diff``."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from deskd.domain.state import ContainerRecord
from deskd.errors import Conflict, InvalidArgument, NotFound
from deskd.layout import DataRoot
from deskd.services.containers.mounting import mount_steps
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.containers.remapping import Remapping
from deskd.services.ports import ByteSource, RootFilesystems, Runtime
from deskd.services.volumes import Volumes

if TYPE_CHECKING:
    from deskd.images.streams import ByteReader

PIPE_BLOCK_BYTES = 256 * 1024
EMPTY_TAR = bytes(1024)
_NOT_TEXT = re.compile("[\udc80-\udcff]")
"""The bytes of a file's name that are no UTF-8. JSON cannot hold them; Go's has U+FFFD for each."""


class Files:
    """Reads and writes containers' files by jobs that have the container's root as theirs."""

    def __init__(
        self,
        registry: ContainerRegistry,
        runtime: Runtime,
        roots: RootFilesystems,
        layout: DataRoot,
        remapping: Remapping,
        volumes: Volumes,
    ) -> None:
        self._registry = registry
        self._runtime = runtime
        self._roots = roots
        self._layout = layout
        self._remapping = remapping
        self._volumes = volumes

    async def stat(self, reference: str, path: str) -> dict[str, Any]:
        """Return the object of the header X-Docker-Container-Path-Stat. Raises ``NotFound``."""
        container = self._registry.get(reference)
        async with self._root_for_us(container), _Staging(self._layout) as staging:
            arguments = self._arguments(container, staging, shown=reference, path=_checked(path))
            found: dict[str, Any] = await self._runtime.run_job("archive_stat", arguments, ())
        return found

    def get(self, reference: str, path: str) -> AsyncIterator[bytes]:
        """Return a file or directory as a tar."""
        container = self._registry.get(reference)
        self._registry.tell(container, "archive-path")
        return self._read_job("archive_get", container, shown=reference, path=_checked(path))

    def export(self, reference: str) -> AsyncIterator[bytes]:
        """Return the whole root, without volumes, as a tar."""
        container = self._registry.get(reference)
        self._registry.tell(container, "export")
        return self._read_job("export", container, path="/")

    async def put(
        self,
        reference: str,
        path: str,
        source: ByteSource,
        *,
        refuse_kind_change: bool = False,
        copy_owner: bool = False,
    ) -> None:
        """Unpack a tar into a directory. Raises ``NotFound``, ``InvalidArgument``."""
        container = self._registry.get(reference)
        user = container.record.config.user if copy_owner else ""
        async with self._root_for_us(container), _Staging(self._layout) as staging:
            arguments = self._arguments(
                container,
                staging,
                shown=reference,
                path=_checked(path),
                refuse_kind_change=refuse_kind_change,
                user=user,
                read_only=container.record.host_config.readonly_rootfs,
            )
            reading, writing = os.pipe2(os.O_CLOEXEC)
            feeding = asyncio.create_task(_feed(source, writing))
            try:
                await self._runtime.run_job("archive_put", arguments, (reading,))
                await feeding
            finally:
                os.close(reading)
                feeding.cancel()
                await asyncio.wait([feeding])
                if not feeding.cancelled():
                    feeding.exception()  # where the job failed, that is the error
        self._registry.tell(container, "extract-to-dir")

    async def changes(self, reference: str) -> list[dict[str, Any]]:
        """Return ``FilesystemChange`` objects."""
        container = self._registry.get(reference)
        try:
            found = await asyncio.to_thread(self._roots.changes, container.id)
        except FileNotFoundError as error:
            if container.removing or self._registry.find(container.id) is not container:
                raise NotFound(f"No such container: {reference}") from error
            raise Conflict(
                f"the files of container {reference} changed while they were listed; ask again"
            ) from error
        return [
            {"Path": _NOT_TEXT.sub("\ufffd", change.path), "Kind": int(change.kind)}
            for change in found
        ]

    async def _read_job(self, job: str, container: Container, **more: Any) -> AsyncIterator[bytes]:
        """Run a job that writes a stream, and pass the stream on."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        async with self._root_for_us(container), _Staging(self._layout) as staging:
            running = self._writing_job(job, self._arguments(container, staging, **more), writing)
            try:
                while block := await asyncio.to_thread(os.read, reading, PIPE_BLOCK_BYTES):
                    yield block
            finally:
                os.close(reading)
                await asyncio.wait([running])
            await running

    @asynccontextmanager
    async def _root_for_us(self, container: Container) -> AsyncIterator[None]:
        """Keep a container from being started while a job has its root mounted: a writable layer
        must not be mounted twice. Its volumes are mounted meanwhile."""
        record = container.record
        if record.state.running:
            yield
            return
        async with container.lock, self._volumes.held(record.mounts, record.id):
            try:
                yield
            finally:
                if not record.state.running:
                    await asyncio.to_thread(self._roots.put_away, record.id)

    def _writing_job(
        self, job: str, arguments: dict[str, Any], writing: int
    ) -> asyncio.Future[Any]:
        """Run a job that writes to a pipe; the pipe ends with the job, whose copy is another."""
        running = asyncio.ensure_future(self._runtime.run_job(job, arguments, (writing,)))
        running.add_done_callback(lambda _: os.close(writing))
        return running

    def _arguments(
        self, container: Container, staging: str, *, shown: str = "", **more: Any
    ) -> dict[str, Any]:
        """Return what every job takes; ``shown`` is what the client calls the container."""
        record = container.record
        arguments: dict[str, Any] = {
            "container": shown or container.id,
            **self._id_maps(record),
            **more,
        }
        if record.state.running:
            return arguments | {"pid": record.state.pid}
        owner = self._remapping.of(record.host_config).root
        steps = (*self._roots.mounts(record.id), *mount_steps(record.mounts, self._volumes, owner))
        return arguments | {"root": steps, "staging": staging}

    def _id_maps(self, record: ContainerRecord) -> dict[str, Any]:
        id_map = self._remapping.of(record.host_config)
        return {"uid_map": id_map.uids, "gid_map": id_map.gids}


class _Staging:
    """An empty engine-side directory that a job covers with mounts only it sees."""

    def __init__(self, layout: DataRoot) -> None:
        self._parent = layout.temporary
        self._path = ""

    async def __aenter__(self) -> str:
        self._path = tempfile.mkdtemp(prefix="root-", dir=self._parent)
        return self._path

    async def __aexit__(self, *_: object) -> None:
        os.rmdir(self._path)


def _checked(path: str) -> str:
    if not path:
        raise InvalidArgument("bad parameter: path cannot be empty: name a file in the container")
    return path


async def _feed(source: ByteSource, writing: int) -> None:
    """Write the plain tar of ``source``, which may be compressed, into a pipe and close it.

    It is decompressed here, since jobs have no packages. Raises ``InvalidArgument`` where it is
    damaged.
    """
    from deskd.images.bridge import feed_thread
    from deskd.images.streams import MAGIC_LENGTH, is_compressed

    head = b""
    try:
        async for block in source:
            head += block
            if len(head) >= MAGIC_LENGTH:
                break
        if is_compressed(head):
            await feed_thread(_chained(head, source), lambda feed: _decompress(feed, writing))
            return
        # No bytes at all are an archive without entries.
        await asyncio.to_thread(_write_all, writing, head or EMPTY_TAR)
        async for block in source:
            await asyncio.to_thread(_write_all, writing, block)
    except BrokenPipeError:
        return  # the job has what it needs, or failed and says why
    finally:
        os.close(writing)


async def _chained(head: bytes, rest: ByteSource) -> AsyncIterator[bytes]:
    yield head
    async for block in rest:
        yield block


def _decompress(source: ByteReader, writing: int) -> None:
    from deskd.images.streams import decompressed, is_damage

    try:
        plain = decompressed(source)
        while block := plain.read(PIPE_BLOCK_BYTES):
            _write_all(writing, block)
    except Exception as error:
        if is_damage(error):
            raise InvalidArgument(f"the archive is damaged ({error}): make it again") from error
        raise


def _write_all(descriptor: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]


def stat_header(found: Mapping[str, Any]) -> str:
    """Return a path's facts as the header carries them: base64 of JSON."""
    import base64
    import json

    shown = {
        name: _NOT_TEXT.sub("\ufffd", value) if isinstance(value, str) else value
        for name, value in found.items()
    }
    return base64.b64encode(json.dumps(shown).encode()).decode()
