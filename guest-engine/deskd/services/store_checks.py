"""The check of the store as clients ask for it: one at a time, told while it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from deskd.images.bridge import written_by_thread
from deskd.images.layers import LayerStore
from deskd.layout import DataRoot
from deskd.services.containers.registry import ContainerRegistry
from deskd.services.volumes import Volumes
from deskd.store.database import Database

if TYPE_CHECKING:
    from deskd.storage.check import Roots


class StoreChecks:
    """Runs checks of images, layers, containers' roots and volumes."""

    def __init__(
        self,
        root: DataRoot,
        database: Database,
        layers: LayerStore,
        registry: ContainerRegistry,
        roots: Roots,
        volumes: Volumes,
    ) -> None:
        self._root = root
        self._database = database
        self._layers = layers
        self._registry = registry
        self._roots = roots
        self._volumes = volumes
        self._lock = asyncio.Lock()

    async def lines(self, *, repair: bool, deep: bool) -> AsyncIterator[bytes]:
        """Yield the check's JSON lines: ``Checking`` with what is looked at, for each thing that
        is wrong ``Problem``, ``Repaired`` and ``Outcome``, and at the end ``Found`` and ``Left``.

        Waits for a check that is under way.
        """

        def work(sink: Callable[[bytes], None]) -> None:
            self._check(lambda line: sink(json.dumps(line).encode() + b"\n"), repair, deep)

        async with self._lock, contextlib.aclosing(written_by_thread(work)) as lines:
            async for line in lines:
                yield line

    def _check(self, tell: Callable[[dict[str, Any]], None], repair: bool, deep: bool) -> None:
        from deskd.storage.check import StoreCheck

        check = StoreCheck(
            self._root,
            self._database,
            self._layers,
            self._registry,
            self._roots,
            self._volumes,
            repair=repair,
            deep=deep,
            tell=lambda what: tell({"Checking": what}),
        )
        found = left = 0
        for finding in check.run():
            found += 1
            left += not finding.repaired
            tell(
                {
                    "Problem": finding.problem,
                    "Repaired": finding.repaired,
                    "Outcome": finding.outcome,
                }
            )
        tell({"Found": found, "Left": left})
