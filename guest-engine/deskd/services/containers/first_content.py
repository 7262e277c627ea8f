"""Filling an empty volume with what the image has in its place, when a container is created."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from deskd.domain.id_mapping import IdMapping
from deskd.domain.state import ContainerRecord, MountPoint
from deskd.errors import DeskdError, InvalidArgument, NotFound, SystemFailure
from deskd.layout import DataRoot
from deskd.services.containers.remapping import Remapping
from deskd.services.ports import RootFilesystems, Runtime
from deskd.services.volumes import UNFINISHED_PREFIX, Volumes


class FirstContent:
    """Copies with owners, modes, times, extended attributes and links.

    A volume that nobody else has open gets its content in one rename: killed in the middle, it is
    still empty. Any other gets one entry after the other.
    """

    def __init__(
        self,
        runtime: Runtime,
        roots: RootFilesystems,
        layout: DataRoot,
        remapping: Remapping,
        volumes: Volumes,
    ) -> None:
        self._runtime = runtime
        self._roots = roots
        self._layout = layout
        self._remapping = remapping
        self._volumes = volumes

    async def copy_up(self, record: ContainerRecord) -> None:
        """Fill the empty ones of a new container's volumes. Raises ``ResourceExhausted`` where
        the disk is full and what mounting a volume raises."""
        for point in record.mounts:
            if point.type == "volume" and point.copy_up and not point.subpath:
                try:
                    await self._copy_up(record, point)
                finally:
                    await asyncio.to_thread(self._roots.put_away, record.id)

    async def _copy_up(self, record: ContainerRecord, point: MountPoint) -> None:
        id_map = self._remapping.of(record.host_config)
        arguments = {
            "container": record.id,
            "path": f"{point.destination}/",
            "root": self._roots.mounts(record.id),
            "uid_map": id_map.uids,
            "gid_map": id_map.gids,
        }
        volume = self._volumes.get(point.name)
        if volume.needs_mount and not await self._has_content(arguments):
            return
        async with self._volumes.held([point], record.id):
            target = self._volumes.mountpoint(point.name)
            if not _is_empty(target):
                return
            # On the volume's own file system, whatever is mounted there.
            place = target if volume.needs_mount else os.path.dirname(target)
            staging = tempfile.mkdtemp(prefix=UNFINISHED_PREFIX, dir=place)
            try:
                content = await self._unpack(arguments, staging, id_map)
                if content is None:
                    return
                alone = not volume.needs_mount and self._volumes.is_claimed_alone(
                    point.name, record.id
                )
                # Without a pause between question and act: who comes now, comes after it.
                if not (alone and _took_place(content, target)):
                    await asyncio.to_thread(_move_into, content, target)
            except OSError as error:
                raise SystemFailure(
                    f"the volume {point.name} cannot be filled with what the image has in "
                    f"{point.destination}: {error.strerror}"
                ) from error
            finally:
                await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)

    async def _has_content(self, arguments: Mapping[str, Any]) -> bool:
        """Ask before a server is asked: most often the image has nothing there."""
        staging = tempfile.mkdtemp(prefix="root-", dir=self._layout.temporary)
        try:
            await self._runtime.run_job("archive_stat", {**arguments, "staging": staging}, ())
        except (NotFound, InvalidArgument):
            return False
        finally:
            os.rmdir(staging)
        return True

    async def _unpack(
        self, arguments: Mapping[str, Any], staging: str, id_map: IdMapping
    ) -> str | None:
        """Bring the image's directory into ``staging``; return where it is, ``None`` where the
        image has none."""
        root = tempfile.mkdtemp(prefix="root-", dir=self._layout.temporary)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            running = asyncio.ensure_future(
                self._runtime.run_job("archive_get", {**arguments, "staging": root}, (writing,))
            )
            running.add_done_callback(lambda _: os.close(writing))
            filling = asyncio.ensure_future(
                asyncio.to_thread(_unpack_pipe, reading, staging, id_map)
            )
            filling.add_done_callback(lambda _: os.close(reading))
            await asyncio.wait([running, filling])
        finally:
            os.rmdir(root)
        broken = filling.exception()
        try:
            await running
        except (NotFound, InvalidArgument):
            return None
        except DeskdError:
            if broken is None:
                raise
        if broken is not None:
            raise broken
        (name,) = os.listdir(staging)
        return os.path.join(staging, name)


def _is_empty(directory: str) -> bool:
    """Say whether a volume has nothing; what an interrupted copy left does not count."""
    with suppress(FileNotFoundError, NotADirectoryError):
        left = [name for name in os.listdir(directory) if name.startswith(UNFINISHED_PREFIX)]
        for name in left:
            shutil.rmtree(os.path.join(directory, name), ignore_errors=True)
        return not os.listdir(directory)
    return False


def _unpack_pipe(reading: int, staging: str, id_map: IdMapping) -> None:
    from deskd.images.streams import decompressed
    from deskd.images.unpack import IntoExisting, unpack

    policy = IntoExisting(id_map=id_map)
    unpack(decompressed(_PipeReader(reading)), staging, into_existing=policy)


def _took_place(content: str, target: str) -> bool:
    """Put a complete directory in the place of an empty one, in one step."""
    try:
        os.rename(content, target)
    except OSError:  # somebody on the machine put a file or a mount there
        return False
    return True


def _move_into(content: str, target: str) -> None:
    found = os.stat(content)
    for name in os.listdir(content):
        os.rename(os.path.join(content, name), os.path.join(target, name))
    os.chown(target, found.st_uid, found.st_gid)
    os.chmod(target, found.st_mode & 0o7777)
    for name in os.listxattr(content):
        os.setxattr(target, name, os.getxattr(content, name))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


class _PipeReader:
    """A blocking reader of a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, size: int = -1, /) -> bytes:
        return os.read(self._descriptor, size if size > 0 else 65536)
