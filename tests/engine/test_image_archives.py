"""Image archives of every format: what is loaded, what is told, and what a saved one holds. The
service runs in the test's process, on a data root of its own."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from deskd import errors
from deskd.images import layers as layer_store
from deskd.images import unpack as unpacking
from deskd.images.removal import ImageUse
from deskd.services.images import Images
from tests.kernel.image_store import Stores, directory, entry, stores, tar

pytestmark = pytest.mark.root

BASE = tar(directory("etc"), entry("etc/os-release", b"ID=x\n"))
TOP = tar(entry("hello", b"hello\n"))
DAY = "2015-05-0%dT01:02:03.5Z"
# What Docker 26.1 makes of FIRST_FORMAT below, lowest layer first.
FIRST_FORMAT_IDS = [
    "sha256:fdefbd12a0db6d4249da218338b98488984b600ce4e1e98a3d58e0c86c88596e",
    "sha256:910dc1edd1b9d7deb33094477b3be819d89c4ac78312db2f6c34edd6099b8c91",
]


class Service:
    """The image service, and what it told."""

    def __init__(self, opened: Stores) -> None:
        self.stores = opened
        self.events: list[tuple[str, str, dict[str, str]]] = []
        self.images = Images(opened.catalog, self, self, opened.snapshots)
        self.told: list[dict[str, Any]] = []

    def image_uses(self) -> Sequence[ImageUse]:
        return []

    def publish(self, kind: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:
        assert kind == "image"
        self.events.append((action, actor_id, dict(attributes)))

    async def load(self, archive: bytes) -> list[str]:
        self.told = []
        found = await self.images.load(_chunks(archive), self.told.append)
        await asyncio.sleep(0)  # what threads tell comes by the loop
        return found

    def lines(self) -> list[str]:
        return [message["stream"] for message in self.told if "stream" in message]

    async def save(self, *names: str) -> dict[str, bytes]:
        data = b"".join([chunk async for chunk in await self.images.save(names)])
        return {
            member.name: opened.extractfile(member).read()  # type: ignore[union-attr]
            for opened in [tarfile.open(fileobj=io.BytesIO(data))]
            for member in opened
            if member.isfile()
        }


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with stores(tmp_path / "data") as opened:
        yield Service(opened)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def image(layers: Sequence[bytes], names: Sequence[str], **config: Any) -> list[Any]:
    """Return a configuration, its layers and its names, for ``archive``."""
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha(layer)}" for layer in layers]},
    }
    return [json.dumps(document).encode(), layers, names]


def archive(*images: list[Any]) -> bytes:
    """Return these images as Docker 25 and newer save them."""
    files: dict[str, bytes] = {}
    manifest = []
    for config, layers, names in images:
        blobs = [f"blobs/sha256/{sha(data)}" for data in (config, *layers)]
        files.update(zip(blobs, (config, *layers), strict=True))
        manifest.append({"Config": blobs[0], "RepoTags": list(names), "Layers": blobs[1:]})
    files["manifest.json"] = json.dumps(manifest).encode()
    return tar(*(entry(name, data) for name, data in files.items()))


def first_format(*, second_parent: str = "low") -> bytes:
    """Return two layers as Docker saved them before 1.10."""
    low = {
        "id": "low", "created": DAY % 1, "author": "ann", "comment": "a<b", "Size": 7,
        "container_config": {"Cmd": ["/bin/sh", "-c", "#(nop) ADD <x> & y"]},
        "config": {"Cmd": ["sh"]}, "os": "linux", "architecture": "amd64",
        "docker_version": "1.9.1",
    }  # fmt: skip
    high = {**low, "id": "high", "parent": second_parent, "created": DAY % 2, "comment": ""}
    files = {"repositories": {"old": {"1": "high", "base": "low"}}, "low/json": low,
             "high/json": high}  # fmt: skip
    return tar(
        *(entry(name, json.dumps(document).encode()) for name, document in files.items()),
        entry("low/VERSION", b"1.0"), entry("low/layer.tar", BASE),
        entry("high/VERSION", b"1.0"), entry("high/layer.tar", TOP),
    )  # fmt: skip


def test_the_format_before_docker_1_10_gives_the_ids_that_docker_gives(service: Service) -> None:
    async def work() -> None:
        assert await service.load(first_format()) == FIRST_FORMAT_IDS
        assert service.lines() == ["Loaded image: old:base\n", "Loaded image: old:1\n"]
        newest, oldest = await service.images.history("old:1")
        assert (newest["Id"], oldest["Id"]) == tuple(reversed(FIRST_FORMAT_IDS))
        assert newest["CreatedBy"] == "/bin/sh -c #(nop) ADD <x> & y"
        assert (newest["Size"], oldest["Size"]) == (6, 5)
        assert (await service.images.inspect("old:base"))["Created"] == DAY % 1

    asyncio.run(work())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (first_format(second_parent="high"), "its own parent"),
        (first_format(second_parent="gone"), "names the layer 'gone', which is not in it"),
        (tar(entry("repositories", b"[1]")), "repositories"),
        (tar(entry("index.json", b'{"a":' * 100_000)), "index.json"),
    ],
)
def test_a_damaged_old_archive_is_one_sentence(service: Service, data: bytes, says: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=says):
        asyncio.run(service.load(data))
    assert service.stores.leftovers() == []
    assert service.stores.catalog.all() == []


def test_layers_that_are_here_are_only_hashed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[str] = []
    unpack = unpacking.unpack

    def counted(*arguments: Any, **options: Any) -> Any:
        unpacked.append(arguments[1])
        return unpack(*arguments, **options)

    monkeypatch.setattr(layer_store, "unpack", counted)

    async def work() -> None:
        await service.load(archive(image([BASE, TOP], ["two:1"])))
        assert len(unpacked) == 2
        assert len({m["id"] for m in service.told if m.get("status") == "Loading layer"}) == 2
        await service.load(archive(image([BASE, TOP], ["two:1"]), image([BASE], ["one:1"])))
        assert len(unpacked) == 2
        assert service.told == [
            {"stream": "Loaded image: two:1\n"},
            {"stream": "Loaded image: one:1\n"},
        ]
        # The same layers in other places are made of those that are here.
        await service.load(archive(image([TOP, BASE], ["turned:1"])))
        assert len(unpacked) == 4
        assert len(await service.images.list_images()) == 3

    asyncio.run(work())


def test_a_blob_with_the_name_of_another_layer_is_refused(service: Service) -> None:
    async def work() -> None:
        await service.load(archive(image([BASE], ["one:1"])))
        bad = archive(image([BASE], ["bad:1"], Cmd=["x"])).replace(b"ID=x\n", b"ID=y\n")
        with pytest.raises(errors.InvalidArgument, match="another digest"):
            await service.load(bad)
        assert [i["RepoTags"] for i in await service.images.list_images()] == [["one:1"]]

    asyncio.run(work())
    assert service.stores.leftovers() == []


def test_a_name_that_moves_is_told(service: Service) -> None:
    async def work() -> None:
        (first,) = await service.load(archive(image([BASE], ["app:1"])))
        (second,) = await service.load(archive(image([TOP], ["app:1"], Labels={"a": "b"})))
        assert service.lines() == [
            f"The image app:1 already exists, renaming the old one with ID {first} to empty string"
            "\n",
            "Loaded image: app:1\n",
        ]
        assert service.events == [
            ("load", first, {"name": first}),
            ("load", second, {"a": "b", "name": second}),
        ]

    asyncio.run(work())


def test_parents_come_back_but_never_in_a_circle(service: Service) -> None:
    base, child = image([BASE], ["base:1"]), image([BASE], ["child:1"], Cmd=["x"])
    ids = [f"sha256:{sha(config)}" for config, _, _ in (base, child)]
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive(base, child))) as opened:
        for member in opened:
            files[member.name] = opened.extractfile(member).read()  # type: ignore[union-attr]
    manifest = json.loads(files["manifest.json"])
    manifest[0]["Parent"], manifest[1]["Parent"] = reversed(ids)
    files["manifest.json"] = json.dumps(manifest).encode()

    async def work() -> None:
        await service.load(tar(*(entry(name, data) for name, data in files.items())))
        parents = [(await service.images.inspect(i))["Parent"] for i in ids]
        assert parents == [ids[1], ""]
        saved = json.loads((await service.save("base:1", "child:1"))["manifest.json"])
        assert [item.get("Parent") for item in saved] == [ids[1], None]

    asyncio.run(work())


def test_a_repository_is_saved_with_all_its_tags(service: Service) -> None:
    async def work() -> None:
        await service.load(archive(image([BASE, TOP], ["app:1", "app:2"]), image([TOP], ["b:1"])))
        await service.images.tag("b:1", "app", "3")
        files = await service.save("app")
        manifest = json.loads(files["manifest.json"])
        assert [item["RepoTags"] for item in manifest] == [["app:1", "app:2"], ["app:3"]]
        assert json.loads(files["repositories"]) == {
            "app": {"1": sha(TOP), "2": sha(TOP), "3": sha(TOP)}
        }
        assert set(manifest[0]["LayerSources"]) == {f"sha256:{sha(BASE)}", f"sha256:{sha(TOP)}"}
        nameless = await service.save((await service.images.resolve("b:1")).id)
        assert json.loads(nameless["manifest.json"])[0]["RepoTags"] is None
        assert "repositories" not in nameless
        with pytest.raises(errors.NotFound, match=r"No such image: nope$"):
            await service.save("app", "nope")

    asyncio.run(work())


def test_a_pattern_shows_only_the_names_that_it_matches(service: Service) -> None:
    async def work() -> None:
        await service.load(archive(image([BASE], ["app:1", "other:1"])))
        (shown,) = await service.images.list_images({"reference": ["app"]})
        assert shown["RepoTags"] == ["app:1"]

    asyncio.run(work())


def test_a_layer_with_an_entry_twice_is_saved_byte_for_byte(service: Service) -> None:
    layer = tar(
        entry("a", b"first"), entry("a", b"second"), directory("d"), entry("d/x", b"in it"),
        entry("d", b"a file now"), entry("\udcff", b"no UTF-8"), entry("\udcff", b"again"),
    )  # fmt: skip

    async def work() -> None:
        await service.load(archive(image([layer], ["twice:1"])))
        assert (await service.images.inspect("twice:1"))["Size"] == len("seconda file nowagain")
        assert (await service.save("twice:1"))[f"blobs/sha256/{sha(layer)}"] == layer

    asyncio.run(work())
