"""Images and registries: pull, push, search, and what a registry says of an image.

The client of registries is loaded by its first use: an engine that pulls nothing does without it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from deskd.domain import reference as references
from deskd.images.catalog import Catalog
from deskd.layout import CERTIFICATES, DataRoot
from deskd.services.ports import Progress
from deskd.settings import Settings

if TYPE_CHECKING:
    from deskd.domain.filters import Filters
    from deskd.domain.image import ImageRecord
    from deskd.domain.reference import Reference
    from deskd.images.connecting import Registries
    from deskd.images.pulling import Transfers
    from deskd.registry.authorization import Credentials
    from deskd.registry.cancellation import Cancellation
    from deskd.registry.endpoints import Endpoints

T = TypeVar("T")
TRANSFERS_AT_ONCE = 16


class ImageEvents(Protocol):
    """Where image events go."""

    def publish(self, kind: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:
        """Send one event, of kind ``image``; ``attributes`` holds the name and the labels."""


class Distribution:
    """Transfers between the image store and registries. Blocking work runs in threads;
    ``progress`` is called on the event loop. A cancelled call ends its transfer and returns when
    nothing of it is left."""

    def __init__(
        self, catalog: Catalog, events: ImageEvents, settings: Settings, root: DataRoot
    ) -> None:
        self._catalog = catalog
        self._events = events
        self._settings = settings
        self._root = root
        self._transfers: Transfers | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._running: set[Cancellation] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    # --- transfers ------------------------------------------------------------------------------

    async def pull(
        self,
        reference: str,
        credentials: Credentials,
        progress: Progress,
        *,
        platform: str = "",
    ) -> None:
        """Fetch an image: ``name:tag``, ``name@digest``, or all tags of a name alone."""
        from deskd.images import pulling

        wanted = pulling.PullRequest(references.parse(reference), platform)
        if self._transfers is None:
            self._transfers = pulling.Transfers(self._catalog)
        transfers = self._transfers
        tell = self._on_loop(progress)
        pulled = await self._transfer(
            credentials,
            lambda registries: pulling.pull(self._catalog, transfers, registries, wanted, tell),
        )
        for image in pulled:
            self._publish("pull", image.reference, image.record)

    async def push(
        self, reference: str, credentials: Credentials, progress: Progress, *, platform: str = ""
    ) -> None:
        """Send an image to its registry: ``name:tag``, or all tags of a name alone.

        ``platform`` is the JSON of an OCI platform, which the image must have.
        """
        from deskd.domain.manifest import parse_platform_object
        from deskd.images import pushing

        wanted = references.parse(reference)
        demanded = parse_platform_object(platform) if platform else None
        tell = self._on_loop(progress)
        pushed = await self._transfer(
            credentials,
            lambda registries: pushing.push(self._catalog, registries, wanted, tell, demanded),
        )
        for image in pushed:
            self._publish("push", image.reference, image.record)

    async def inspect(self, reference: str, credentials: Credentials) -> dict[str, Any]:
        """Return ``DistributionInspect``: what a registry says of an image."""
        from deskd.images import remote

        wanted = references.parse(reference)
        return await self._transfer(
            credentials, lambda registries: remote.inspect(registries, wanted)
        )

    async def search(
        self, term: str, credentials: Credentials, *, limit: int, filters: Filters
    ) -> Sequence[dict[str, Any]]:
        """Return ``ImageSearch``: what a registry (Docker Hub, or the one that ``term`` begins
        with) finds."""
        from deskd.images import remote

        return await self._transfer(
            credentials, lambda registries: remote.search(registries, term, limit, filters)
        )

    async def log_in(self, credentials: Credentials) -> str:
        """See whether a registry knows somebody; return its identity token, mostly empty."""
        from deskd.registry.login import log_in

        return await self._transfer(
            credentials,
            lambda registries: log_in(registries.endpoints, credentials, registries.cancellation),
        )

    async def close(self) -> None:
        """Give up every transfer and wait for its end, so that nothing is half-made."""
        for cancellation in self._running:
            cancellation.cancel()
        await self._idle.wait()
        if self._threads is not None:
            self._threads.shutdown()  # they are idle by now

    def _publish(self, action: str, reference: Reference, record: ImageRecord) -> None:
        attributes = dict(record.container_config.labels or {})
        attributes["name"] = reference.familiar_name
        self._events.publish("image", action, reference.familiar, attributes)

    # --- between loop and threads ---------------------------------------------------------------

    async def _transfer(self, credentials: Credentials, work: Callable[[Registries], T]) -> T:
        """Run ``work`` in a thread; when this is cancelled, ``work`` is and has ended."""
        from deskd.images.connecting import Registries
        from deskd.registry.cancellation import Cancellation, Cancelled

        cancellation = Cancellation()
        registries = Registries(self._endpoints(), credentials, cancellation)
        if self._threads is None:
            # Not the loop's own threads: transfers take minutes, and others wait for those.
            self._threads = ThreadPoolExecutor(TRANSFERS_AT_ONCE, thread_name_prefix="transfer")
        self._running.add(cancellation)
        self._idle.clear()
        loop = asyncio.get_running_loop()
        working = loop.run_in_executor(self._threads, work, registries)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            cancellation.cancel()
            with contextlib.suppress(Cancelled):
                await _through(working)
            raise
        finally:
            self._running.discard(cancellation)
            if not self._running:
                self._idle.set()

    def _endpoints(self) -> Endpoints:
        from deskd.registry.endpoints import Endpoints

        return Endpoints(
            self._settings.registry_mirrors,
            self._settings.insecure_registries,
            (self._root.certificates, *CERTIFICATES),
        )

    @staticmethod
    def _on_loop(progress: Progress) -> Progress:
        loop = asyncio.get_running_loop()
        return lambda message: _tell(loop, progress, message)


def _tell(loop: asyncio.AbstractEventLoop, progress: Progress, message: dict[str, Any]) -> None:
    loop.call_soon_threadsafe(progress, message)


async def _through(working: asyncio.Future[T]) -> None:
    """Wait for the end of a thread's work, whatever comes; its failure is nobody's any more."""
    while not working.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([working])
    if not working.cancelled():
        working.exception()
