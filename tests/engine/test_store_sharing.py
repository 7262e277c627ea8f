"""Layers are stored once, containers cost next to nothing, and what many clients add and remove at
the same time leaves a whole store."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engine_process import API, IMAGE, Api, EngineProcess
from tests.registry_process import running_registry

pytestmark = pytest.mark.root

MIB = 1024 * 1024
CONTAINERS = 200
WAL_BYTES = 4 * MIB + 64 * 1024
"""The database's log: what it holds between two checkpoints, however many containers there are."""


@pytest.fixture
def clean(engine: EngineProcess) -> Iterator[EngineProcess]:
    yield engine
    engine.remove_everything()
    for image in engine.api.get("/images/json", all=True):
        if f"{IMAGE}:latest" not in image["RepoTags"]:
            engine.api.delete(f"/images/{image['Id']}", force=True)
    assert engine.api.check_store() == []


def noise_tar(seed: int, size: int, files: int = 1) -> bytes:
    made = random.Random(seed)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(files):
            member = tarfile.TarInfo(f"noise-{seed}-{number}")
            member.size = size
            tar.addfile(member, io.BytesIO(made.randbytes(size)))
    return buffer.getvalue()


def bring_in(api: Api, name: str, tar: bytes) -> None:
    status, _, said = api.raw("POST", f"{API}/images/create?fromSrc=-&repo={name}", tar)
    assert status == 200, said


def used_bytes(place: Path) -> int:
    """What ``du`` says: the blocks of everything below, each inode once."""
    blocks = {}
    for directory, names, files in os.walk(place):
        for name in (*names, *files):
            status = os.lstat(os.path.join(directory, name))  # noqa: PTH118
            blocks[status.st_dev, status.st_ino] = status.st_blocks
    return sum(blocks.values()) * 512


def grown_bytes(engine: EngineProcess, before: int) -> int:
    """By how much the data root is larger than ``before``, its database's log apart."""
    wal = engine.data_root / "engine.db-wal"
    return used_bytes(engine.data_root) - wal.stat().st_blocks * 512 - before


def test_hundreds_of_containers_cost_hundreds_of_kilobytes(clean: EngineProcess) -> None:
    api = clean.api
    bring_in(api, "big", noise_tar(1, 32 * MIB))
    before = grown_bytes(clean, 0)
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(
                lambda _: api.post("/containers/create", {"Image": "big", "Cmd": ["x"]})["Id"],
                range(CONTAINERS),
            )
        )
    assert len(set(made)) == CONTAINERS
    grown = grown_bytes(clean, before)
    assert grown <= CONTAINERS * 4 * 1024, f"{grown / CONTAINERS:.0f} bytes a container"
    assert (clean.data_root / "engine.db-wal").stat().st_size <= WAL_BYTES
    assert list((clean.data_root / "containers").iterdir()) == [], "records are all there is"
    sizes = api.get("/system/df", type="container")["Containers"]
    assert sum(item.get("SizeRw") or 0 for item in sizes) == 0


def test_containers_that_ran_keep_what_they_wrote_and_no_more(clean: EngineProcess) -> None:
    api = clean.api
    places = clean.data_root / "containers"

    def ran(*command: str) -> str:
        container = api.run(*command)
        assert api.wait(container) == 0
        # The exit is told before what the root needed is put away; the removal waits for that,
        # and so does a start.
        api.post(f"/containers/{container}/start")
        assert api.wait(container) == 0
        assert api.raw("GET", f"{API}/containers/{container}/archive?path=/bin")[0] == 200
        return container

    quiet, loud, writer = ran("true"), ran("echo", "said"), ran("touch", "/written")
    left = {place.name: {path.name for path in place.iterdir()} for place in places.iterdir()}
    assert left == {
        quiet: {f"{quiet}-json.log"},
        loud: {f"{loud}-json.log"},
        writer: {f"{writer}-json.log", "upper"},
    }
    assert used_bytes(places / quiet) == 0
    assert used_bytes(places / loud) <= 4096
    assert used_bytes(places / writer) <= 4096
    assert api.get(f"/containers/{quiet}/changes") == []
    assert api.get(f"/containers/{writer}/changes") == [{"Path": "/written", "Kind": 1}]
    assert api.check_store() == []


def test_a_created_container_is_used_like_one_with_files(clean: EngineProcess) -> None:
    """All that reads or writes a root that has no directory yet."""
    api, places = clean.api, clean.data_root / "containers"
    container = api.create("true")
    assert api.get(f"/containers/{container}/changes") == []
    status, _, found = api.raw("GET", f"{API}/containers/{container}/archive?path=/bin/busybox")
    assert status == 200
    assert len(found) > MIB
    assert not (places / container).exists(), "reading leaves nothing behind"
    assert api.get(f"/containers/{container}/json", size=True)["SizeRw"] == 0
    empty = api.post("/commit", {}, container=container, repo="empty")["Id"]
    assert api.get(f"/images/{empty}/json")["Size"] == api.get(f"/images/{IMAGE}/json")["Size"]
    target = f"{API}/containers/{container}/archive?path=/"
    assert api.raw("PUT", target, noise_tar(5, 1000))[0] == 200
    assert api.get(f"/containers/{container}/changes") == [{"Path": "/noise-5-0", "Kind": 1}]
    assert api.get(f"/containers/{container}/json", size=True)["SizeRw"] == 1000
    api.post(f"/containers/{container}/start")
    assert api.wait(container) == 0
    api.delete(f"/containers/{container}")
    assert not (places / container).exists()


def test_images_with_one_base_store_it_once(clean: EngineProcess) -> None:
    api = clean.api
    layers = clean.data_root / "layers"
    sizes_before = api.get("/system/df")["LayersSize"]
    bring_in(api, "base", noise_tar(2, 16 * MIB))
    with_base = used_bytes(layers)
    for number, size in ((1, 3 * MIB), (2, 5 * MIB)):
        container = api.post("/containers/create", {"Image": "base", "Cmd": ["x"]})["Id"]
        target = f"{API}/containers/{container}/archive?path=/"
        assert api.raw("PUT", target, noise_tar(number, size))[0] == 200
        api.post("/commit", {}, container=container, repo=f"child{number}")
        api.delete(f"/containers/{container}")
    grown = used_bytes(layers) - with_base
    assert 8 * MIB <= grown < 9 * MIB, "the children's own files, and not the base again"
    usage = api.get("/system/df")
    found = {image["RepoTags"][0]: image for image in usage["Images"]}
    for name, own in (("base", 0), ("child1", 3 * MIB), ("child2", 5 * MIB)):
        image = found[f"{name}:latest"]
        assert image["Size"] == 16 * MIB + own
        assert image["SharedSize"] == 16 * MIB
    assert usage["LayersSize"] - sizes_before == 24 * MIB
    assert abs(used_bytes(layers) - usage["LayersSize"]) < 2 * MIB  # blocks, and the recipes
    for name in ("child1", "child2"):
        api.delete(f"/images/{name}")
    assert used_bytes(layers) - with_base < MIB
    assert api.get("/system/df")["LayersSize"] - sizes_before == 16 * MIB


ALLOWED = {200, 201, 204, 304, 404, 409}


def test_many_clients_that_add_and_remove(own_engine: EngineProcess, tmp_path: Path) -> None:
    """Imports, pulls, creates, commits, removals and prunes at once: everybody gets an answer that
    Docker could give, and nothing is left half-made."""
    api = own_engine.api
    with running_registry(tmp_path / "registry", before=own_engine.inside_network()) as address:
        for number in range(3):
            bring_in(api, f"{address}/img{number}", noise_tar(10 + number, 20_000, 30))
            status, _, said = api.raw(
                "POST", f"{API}/images/{address}/img{number}/push", b"", {"X-Registry-Auth": "e30="}
            )
            assert status == 200, said
            assert b"errorDetail" not in said

        def call(method: str, path: str, body: object = None) -> int:
            data = body if isinstance(body, bytes) else json.dumps(body) if body else None
            headers = {} if isinstance(body, bytes) else {"Content-Type": "application/json"}
            status, _, said = api.raw(method, f"{API}{path}", data, headers, timeout_s=60)
            assert status in ALLOWED, (method, path, status, said[-300:])
            assert b"errorDetail" not in said or b"No such image" in said, (path, said[-300:])
            return status

        def pull(rng: random.Random) -> None:
            call("POST", f"/images/create?fromImage={address}/img{rng.randrange(3)}&tag=latest")

        def remove(rng: random.Random) -> None:
            force = rng.randrange(2)
            call("DELETE", f"/images/{address}/img{rng.randrange(3)}?force={force}")

        def prune(rng: random.Random) -> None:
            dangling = "true" if rng.randrange(2) else "false"
            filters = f"%7B%22dangling%22%3A%5B%22{dangling}%22%5D%7D"
            call("POST", f"/images/prune?filters={filters}")

        def live(rng: random.Random) -> None:
            name = f"c{rng.randrange(1 << 40)}"
            image = f"{address}/img{rng.randrange(3)}"
            made = call("POST", f"/containers/create?name={name}", {"Image": image, "Cmd": ["x"]})
            if made == 201:
                call("PUT", f"/containers/{name}/archive?path=/", noise_tar(rng.randrange(99), 999))
                call("POST", f"/commit?container={name}&repo=kept{rng.randrange(4)}", {})
                assert call("DELETE", f"/containers/{name}") == 204

        def bring(rng: random.Random) -> None:
            seed = 10 + rng.randrange(3)
            call("POST", f"/images/create?fromSrc=-&repo=in{seed}", noise_tar(seed, 20_000, 30))

        works: list[Callable[[random.Random], None]] = [pull, remove, prune, live, bring, live]

        def client(number: int) -> None:
            rng = random.Random(number)
            for _ in range(12):
                works[number % len(works)](rng)

        with ThreadPoolExecutor(len(works)) as pool:
            list(pool.map(client, range(len(works))))
        assert api.check_store() == []
        for number in range(3):
            pull_one = f"/images/create?fromImage={address}/img{number}&tag=latest"
            assert call("POST", pull_one) == 200
            assert call("GET", f"/images/{address}/img{number}/json") == 200
