"""The engine's distribution service in the test's process, on a data root of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deskd.domain.image import chain_ids
from deskd.registry.authorization import Credentials
from deskd.services.distribution import Distribution
from deskd.settings import Settings
from tests.kernel.image_store import Stores, stores
from tests.registry_process import running_registry


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def publish(self, kind: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:
        self.events.append((action, actor_id, attributes["name"]))


class Service:
    """The distribution service and what it stands on."""

    def __init__(self, opened: Stores, settings: Settings) -> None:
        self.stores = opened
        self.recorder = Recorder()
        self.service = Distribution(opened.catalog, self.recorder, settings, opened.root)
        self.told: list[dict[str, Any]] = []

    def pull(self, reference: str, **wanted: Any) -> list[str]:
        """Pull; return the lines as a terminal shows them."""
        return asyncio.run(self.pulling(reference, **wanted))

    async def pulling(
        self, reference: str, credentials: Credentials | None = None, platform: str = ""
    ) -> list[str]:
        told: list[dict[str, Any]] = []
        self.told = told
        await self.service.pull(
            reference, credentials or Credentials(), told.append, platform=platform
        )
        await asyncio.sleep(0)
        return [" ".join(filter(None, (m.get("id", ""), m["status"]))) for m in told]

    def push(
        self, reference: str, credentials: Credentials | None = None, platform: str = ""
    ) -> list[str]:
        """Push; return the lines as a terminal shows them."""
        told: list[dict[str, Any]] = []
        self.told = told

        async def work() -> None:
            await self.service.push(
                reference, credentials or Credentials(), told.append, platform=platform
            )
            await asyncio.sleep(0)

        asyncio.run(work())
        return [" ".join(filter(None, (m.get("id", ""), m.get("status", "")))) for m in told]

    def content(self, name: str) -> dict[str, bytes]:
        """Return the files of an image's layers, lowest first."""
        record = self.stores.catalog.get(name)
        found: dict[str, bytes] = {}
        for chain_id in chain_ids(record.config.diff_ids):
            layer = self.stores.layers.get(chain_id)
            assert layer is not None
            place = Path(self.stores.layers.directory(layer))
            for path in place.rglob("*"):
                if path.is_file():
                    found[str(path.relative_to(place))] = path.read_bytes()
        return found

    def check_nothing_left(self) -> None:
        assert self.stores.leftovers() == []
        assert self.stores.layers.all() == []
        assert self.stores.catalog.all() == []


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Service]:
    """A service of the test's own."""
    with service(tmp_path / "data") as made:
        yield made


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry for all tests of a module."""
    with running_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what failed tried again at once, in every module that imports this."""
    monkeypatch.setattr("deskd.registry.blobs.FIRST_DELAY_S", 0.01)
    monkeypatch.setattr("deskd.images.pushing.FIRST_DELAY_S", 0.01)
    monkeypatch.setattr("deskd.registry.repository.RETRY_DELAYS_S", (0.01, 0.01))


@contextlib.contextmanager
def service(path: Path, **settings: Any) -> Iterator[Service]:
    with stores(path) as opened:
        made = Service(opened, Settings(**settings))
        try:
            yield made
        finally:
            asyncio.run(made.service.close())
