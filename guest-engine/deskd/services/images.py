"""Images as clients use them: list, inspect, import, load, save, tag, remove, prune, commit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deskd import errors
from deskd.domain import reference as references
from deskd.domain.container import ContainerConfig
from deskd.domain.filters import Filters
from deskd.domain.image import ImageRecord
from deskd.images.bridge import begun, feed_thread, written_by_thread
from deskd.images.catalog import Catalog
from deskd.images.streams import ByteReader
from deskd.record import Record
from deskd.services.ports import ByteSource, Progress

if TYPE_CHECKING:
    from deskd.images import loading, removal, saving
    from deskd.images.removal import ImageUse

log = logging.getLogger(__name__)


class ImageUsers(Protocol):
    """Which containers stand on which image; asked before an image is removed or pruned."""

    def image_uses(self) -> Sequence[ImageUse]:
        """Return one entry for each container, running or not, and each that is being made.

        A removal asks from a thread that holds the database: it must wait for nothing.
        """


class ContainerLayers(Protocol):
    """The changes of containers, for ``commit``."""

    def layer_tar(self, container_id: str) -> ByteReader:
        """Return the container's own changes as the tar of an image layer."""


class ImageEvents(Protocol):
    """Where image events go."""

    def publish(self, kind: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:
        """Send one event, of kind ``image``; ``attributes`` holds the name and the labels."""


class CommitSource(Record):
    """What ``commit`` needs of a container."""

    container_id: str
    image_id: str
    config: ContainerConfig


class Images:
    """The image service. Names may be references, IDs (with or without ``sha256:``) or prefixes
    of IDs. Blocking work runs in threads; ``progress`` is always called on the event loop."""

    def __init__(
        self,
        catalog: Catalog,
        users: ImageUsers,
        events: ImageEvents,
        containers: ContainerLayers,
        *,
        bundled: str | None = None,
    ) -> None:
        self._catalog = catalog
        self._users = users
        self._events = events
        self._containers = containers
        self._bundled = bundled
        self._bundling: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    # --- looking --------------------------------------------------------------------------------

    async def resolve(self, name: str) -> ImageRecord:
        """Return the image of this name; ``.config`` and ``.container_config`` are its parsed
        configuration. Waits for bundled images that are still being loaded.

        Raises ``NotFound`` (``No such image: …``), or ``InvalidArgument`` for an ambiguous prefix.
        """
        found = self._catalog.find(name)
        if found is None:
            await self._bundled_loaded()
            found = self._catalog.get(name)
        return found

    async def list_images(
        self,
        filters_: Mapping[str, Sequence[str]] | None = None,
        *,
        all_: bool = False,
        shared_size: bool = False,
    ) -> list[dict[str, Any]]:
        """Return ``ImageSummary`` objects, newest first; ``all_`` includes intermediate ones."""
        from deskd.images import describe, filters

        await self._bundled_loaded()
        wanted = Filters(filters_)
        chosen = filters.select(self._catalog, wanted, include_intermediate=all_)
        return describe.summaries(
            self._catalog,
            chosen,
            self._users.image_uses(),
            with_shared=shared_size,
            patterns=wanted.get("reference"),
        )

    async def inspect(self, name: str) -> dict[str, Any]:
        """Return ``ImageInspect``."""
        from deskd.images import describe

        return describe.inspect(self._catalog, await self.resolve(name))

    async def history(self, name: str) -> list[dict[str, Any]]:
        """Return ``HistoryResponseItem`` objects, newest first."""
        from deskd.images import describe

        return describe.history(self._catalog, await self.resolve(name))

    async def disk_usage(self) -> dict[str, Any]:
        """Return the ``LayersSize`` and ``Images`` of ``GET /system/df``."""
        return {
            "LayersSize": self._catalog.layers.total_size(),
            "Images": await self.list_images(all_=False, shared_size=True),
        }

    # --- bringing in ----------------------------------------------------------------------------

    async def import_(
        self,
        source: ByteSource,
        *,
        repo: str = "",
        tag: str = "",
        changes: Sequence[str] = (),
        message: str = "",
        platform: str = "",
        progress: Progress | None = None,
    ) -> str:
        """Make an image of one flat root file system (a tar, plain or compressed).

        Returns the image's ID; the last progress object is ``{"status": ID}`` as Docker's.
        """
        from deskd.images import importing

        wanted = importing.ImportRequest(
            reference=references.from_repository(repo, tag) if repo else None,
            changes=tuple(changes),
            message=message,
            platform=platform,
        )
        importing.check(wanted)
        record = await feed_thread(
            source, lambda feed: importing.import_image(self._catalog, feed, wanted)
        )
        if wanted.reference:
            self._publish("tag", record, wanted.reference.familiar)
        self._publish("import", record)
        if progress:
            progress({"status": record.id})
        return record.id

    async def load(
        self, source: ByteSource, progress: Progress | None = None, *, quiet: bool = False
    ) -> list[str]:
        """Load the images of an archive (``docker save`` or an OCI layout); return their IDs.

        Each loaded name is told by ``{"stream": "Loaded image: NAME\\n"}``.
        """
        from deskd.images import loading

        tell = self._on_loop(progress)
        loaded = await feed_thread(
            source,
            lambda feed: loading.load(self._catalog, feed, None if quiet else tell),
        )
        return self._told(loaded, progress)

    async def save(self, names: Sequence[str]) -> AsyncIterator[bytes]:
        """Return a stream of an archive of these images (``docker load`` gives the same IDs); a
        repository without a tag means all its tags.

        Raises ``NotFound``, ``DataLoss`` and ``InvalidArgument`` before the first byte.
        """
        from deskd.images import saving

        await self._bundled_loaded()
        return await begun(self._save(saving.plan_save(self._catalog, names)))

    async def _save(self, plan: saving.SavePlan) -> AsyncGenerator[bytes]:
        from deskd.images import saving

        written = written_by_thread(lambda sink: saving.save(self._catalog, plan, sink))
        async with contextlib.aclosing(written) as chunks:
            async for chunk in chunks:
                yield chunk
        for record in plan.records:
            self._publish("save", record)

    async def commit(
        self,
        source: CommitSource,
        *,
        repo: str = "",
        tag: str = "",
        comment: str = "",
        author: str = "",
        changes: Sequence[str] = (),
        config: ContainerConfig | None = None,
    ) -> str:
        """Make an image of a container's own changes on top of its image; return its ID.
        ``config`` is completed with the container's.

        The caller pauses the container while this runs, where the client asked for it.
        """
        from deskd.images import changes as instructions
        from deskd.images import importing
        from deskd.services.containers.merging import as_list, merge_config

        changed = instructions.apply(config or source.config, changes)
        wanted = importing.CommitRequest(
            container_id=source.container_id,
            image_id=source.image_id,
            config=merge_config(changed, source.config) if config else changed,
            created_by=" ".join(as_list(source.config.cmd)),
            reference=references.from_repository(repo, tag) if repo else None,
            comment=comment,
            author=author,
        )
        tar = self._containers.layer_tar(source.container_id)
        record = await asyncio.to_thread(importing.commit_image, self._catalog, tar, wanted)
        if wanted.reference:
            self._publish("tag", record, wanted.reference.familiar)
        return record.id

    # --- names and removal ----------------------------------------------------------------------

    async def tag(self, name: str, repo: str, tag: str = "") -> None:
        """Give an image a further name; a name in use elsewhere moves."""
        record = await self.resolve(name)
        reference = references.from_repository(repo, tag)
        self._catalog.tag(reference, record.id)
        self._publish("tag", record, reference.familiar)

    async def remove(
        self, name: str, *, force: bool = False, noprune: bool = False, group: str = ""
    ) -> list[dict[str, str]]:
        """Untag and, where nothing else holds it, delete an image; with a ``group`` into the bin.

        Returns ``{"Untagged": …}`` and ``{"Deleted": …}`` objects in the order of the work;
        raises ``Conflict`` with Docker's words where a container or an image stands on it.
        """
        from deskd.images import removal

        await self.resolve(name)
        async with self._changing:
            done = await asyncio.to_thread(
                removal.remove,
                self._catalog,
                self._users.image_uses,
                name,
                force=force,
                prune_parents=not noprune,
                group=group,
            )
        self._publish_removed(done)
        return [step.report for step in done]

    async def prune(
        self, filters_: Mapping[str, Sequence[str]] | None = None, *, group: str = ""
    ) -> dict[str, Any]:
        """Delete unused images: untagged ones, or with ``dangling=false`` all unused ones.

        Returns ``ImagesDeleted`` and ``SpaceReclaimed`` (bytes).
        """
        from deskd.images import removal

        async with self._changing:
            done, reclaimed_bytes = await asyncio.to_thread(
                removal.prune, self._catalog, self._users.image_uses, Filters(filters_), group
            )
        self._publish_removed(done)
        self._events.publish("image", "prune", "", {"reclaimed": str(reclaimed_bytes)})
        return {
            "ImagesDeleted": [step.report for step in done] or None,
            "SpaceReclaimed": reclaimed_bytes,
        }

    # --- bundled images -------------------------------------------------------------------------

    def start_bundled(self) -> None:
        """Begin to load the bundled archives in the background; call once, on the event loop."""
        if self._bundling is None:
            self._bundling = asyncio.create_task(self.ensure_bundled())

    async def ensure_bundled(self) -> None:
        """Load each bundled archive that was never loaded here; idempotent.

        An image that the user removed stays removed. A damaged archive is logged and left out.
        """
        from deskd.images import loading

        if self._bundled is None:
            return
        for path in await asyncio.to_thread(self._bundled_archives, self._bundled):
            mark = loading.bundle_mark(path)
            if self._catalog.database.get_meta(f"bundled:{path.name}") == mark:
                continue
            try:
                loaded = await asyncio.to_thread(loading.load_file, self._catalog, path)
            except errors.DeskdError as error:
                log.error("the bundled image %s cannot be loaded: %s", path, error)
                continue
            self._told(loaded, None)
            self._catalog.database.set_meta(f"bundled:{path.name}", mark)

    async def close(self) -> None:
        """Wait for the loading of bundled images to end, so that nothing is half-made."""
        await self._bundled_loaded()

    @staticmethod
    def _bundled_archives(directory: str) -> list[Path]:
        folder = Path(directory)
        return sorted(path for path in folder.glob("*.tar*")) if folder.is_dir() else []

    async def _bundled_loaded(self) -> None:
        if self._bundling is not None and not self._bundling.done():
            await asyncio.shield(self._bundling)

    # --- between loop and threads ---------------------------------------------------------------

    def _on_loop(self, progress: Progress | None) -> Progress | None:
        if progress is None:
            return None
        loop, tell = asyncio.get_running_loop(), progress

        def told_from_thread(message: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(tell, message)

        return told_from_thread

    def _told(self, loaded: Sequence[loading.Loaded], progress: Progress | None) -> list[str]:
        for entry in loaded:
            self._publish("load", entry.record)
            for name, former in entry.renamed.items():
                text = f"The image {name} already exists, renaming the old one with ID {former}"
                if progress:
                    progress({"stream": f"{text} to empty string\n"})
            for name in entry.names or [""]:
                label = f"Loaded image: {name}" if name else f"Loaded image ID: {entry.record.id}"
                if progress:
                    progress({"stream": f"{label}\n"})
        return [entry.record.id for entry in loaded]

    def _publish(self, action: str, record: ImageRecord, name: str = "") -> None:
        attributes = dict(record.container_config.labels or {})
        attributes["name"] = name or record.id
        self._events.publish("image", action, record.id, attributes)

    def _publish_removed(self, done: Sequence[removal.Step]) -> None:
        for step in done:
            if not step.image_id:
                continue  # a layer, which has no events
            action = "untag" if "Untagged" in step.report else "delete"
            attributes = {**step.labels, "name": step.image_id}
            self._events.publish("image", action, step.image_id, attributes)
