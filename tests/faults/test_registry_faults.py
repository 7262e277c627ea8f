"""Pulls that are killed, run out of disk, or meet a removal: the store is whole afterwards, and a
second try completes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.image_store import entry, stores, tar
from tests.registry_process import FaultProxy, Pusher, running_registry
from tests.registry_service import Service, service

from deskd import errors
from deskd.domain.filters import Filters
from deskd.domain.image import chain_ids
from deskd.domain.reference import parse
from deskd.images import removal

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).parents[2]
BASE = tar(entry("base", b"base"))
PULLER = """
import sys
from pathlib import Path
from tests.registry_service import service
with service(Path(sys.argv[1])) as here:
    here.pull(sys.argv[2])
"""


def noise(seed: int, files: int = 40, size: int = 20_000) -> bytes:
    made = random.Random(seed)
    return tar(*(entry(f"{seed}/{n}", made.randbytes(size)) for n in range(files)))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("registry")) as address:
        pusher = Pusher(address)
        pusher.image("big", "1", [BASE, noise(1), noise(2), noise(3)])
        pusher.image("small", "1", [BASE])
        yield address


def check_whole(here: Service) -> None:
    """Every record has its directory and the content that it names, and nothing else is there."""
    assert here.stores.leftovers() == []
    for layer in here.stores.layers.all():
        for _ in here.stores.layers.open_tar(layer):
            pass
    for image in here.stores.catalog.all():
        chain = chain_ids(image.config.diff_ids)
        assert len(here.stores.layers.chain(chain[-1])) == len(chain)


@pytest.mark.parametrize("after_bytes", [0, 1, 30_000, 500_000, 1_500_000, 2_300_000, 9_000_000])
def test_sigkill_in_a_pull(tmp_path: Path, registry: str, after_bytes: int) -> None:
    """The puller is killed when so many bytes have come; beyond the last it is let through."""
    come = 0
    reached = threading.Event()

    def rule(_number: int, _passed: int, data: bytes) -> bytes:
        nonlocal come
        come += len(data)
        if come > after_bytes:
            reached.set()
        return data

    with FaultProxy(registry, rule) as proxy:
        name = f"{proxy.address}/big:1"
        puller = subprocess.Popen(
            [sys.executable, "-c", PULLER, tmp_path / "data", name],
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'guest-engine'}"},
        )
        if after_bytes < 9_000_000:
            assert reached.wait(60)
            puller.send_signal(signal.SIGKILL)
        puller.wait(60)
        with stores(tmp_path / "data") as opened:
            opened.layers.sweep().join()
        with service(tmp_path / "data") as here:
            check_whole(here)
            lines = here.pull(name)
            assert lines[-1].startswith("Status: ")
            check_whole(here)
            assert len(here.content(name)) == 121


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_in_a_pull(small_disk: Path, registry: str) -> None:
    with service(small_disk / "data") as here:
        with pytest.raises(errors.ResourceExhausted, match="no space left"):
            here.pull(f"{registry}/big:1")
        here.check_nothing_left()
        here.pull(f"{registry}/small:1")
        assert here.content(f"{registry}/small:1") == {"base": b"base"}
        check_whole(here)


def test_a_layer_that_is_wanted_is_not_removed_meanwhile(tmp_path: Path, registry: str) -> None:
    """The base image goes while an image that stands on its layer is on its way."""
    stalled, go_on = threading.Event(), threading.Event()

    def rule(_number: int, passed: int, data: bytes) -> bytes:
        if passed > 300_000:
            stalled.set()
            go_on.wait(60)
        return data

    with service(tmp_path / "data") as here, FaultProxy(registry, rule) as proxy:
        small = f"{proxy.address}/small:1"
        here.pull(small)
        failures: list[BaseException] = []

        def pull() -> None:
            try:
                here.pull(f"{proxy.address}/big:1")
            except BaseException as error:  # noqa: BLE001  # told by the test's thread
                failures.append(error)

        pulling = threading.Thread(target=pull)
        pulling.start()
        try:
            assert stalled.wait(60)
            done = removal.remove(here.stores.catalog, list, small, force=False, prune_parents=True)
            assert any("Deleted" in step.report for step in done)
        finally:
            go_on.set()
            pulling.join(60)
        assert failures == []
        assert here.content(f"{proxy.address}/big:1")["base"] == b"base"
        check_whole(here)


# --- names that come with pulls -----------------------------------------------------------------


def test_names_of_pulled_images_go_as_dockers_do(tmp_path: Path, registry: str) -> None:
    first, first_id, _ = Pusher(registry).image("moving", "1", [tar(entry("v", b"1"))])
    with service(tmp_path / "data") as here:
        catalog, name = here.stores.catalog, f"{registry}/moving"
        here.pull(f"{name}:1")
        catalog.tag(parse(f"{name}:also"), first_id)

        def remove(text: str) -> list[dict[str, str]]:
            done = removal.remove(catalog, list, text, force=False, prune_parents=True)
            return [step.report for step in done]

        assert remove(f"{name}:also") == [{"Untagged": f"{name}:also"}]
        second, second_id, _ = Pusher(registry).image("moving", "1", [tar(entry("v", b"2"))])
        here.pull(f"{name}:1")
        assert catalog.get(f"{name}@{first}").id == first_id
        assert catalog.get(f"{name}:1@{second}").id == second_id
        done, _ = removal.prune(catalog, list, Filters())
        assert [step.report for step in done][:2] == [
            {"Untagged": f"{name}@{first}"},
            {"Deleted": first_id},
        ]
        assert remove(f"{name}:1")[:3] == [
            {"Untagged": f"{name}:1"},
            {"Untagged": f"{name}@{second}"},
            {"Deleted": second_id},
        ]
        here.check_nothing_left()
