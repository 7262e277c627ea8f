"""The image service on a real data root: bringing in, giving out, removing, and bad input."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deskd import errors
from deskd.domain.state import ContainerRecord
from deskd.images import saving
from deskd.images.removal import ImageUse
from deskd.services.containers.registry import ContainerRegistry
from deskd.services.events import Events
from deskd.services.images import CommitSource, Images
from deskd.store import records
from tests.kernel.image_store import Stores, directory, entry, stores, tar

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).parents[2]
ROOTFS = tar(directory("./"), directory("etc"), entry("etc/os-release", b"ID=x\n"))
CONTAINER = "c" * 64


class Users:
    """The containers that stand on images, as a test wants them."""

    def __init__(self) -> None:
        self.uses: list[ImageUse] = []

    def image_uses(self) -> list[ImageUse]:
        return self.uses


class Recorder:
    """Keeps the events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def publish(self, kind: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:
        assert kind == "image"
        assert actor_id.startswith("sha256:") or action == "prune"
        self.events.append((action, attributes.get("name", "")))


class Service:
    """The service and what it stands on."""

    def __init__(self, opened: Stores, bundled: Path | None = None) -> None:
        self.stores = opened
        self.users = Users()
        self.recorder = Recorder()
        self.images = Images(
            opened.catalog,
            self.users,
            self.recorder,
            opened.snapshots,
            bundled=str(bundled) if bundled else None,
        )

    async def import_(self, data: bytes = ROOTFS, **wanted: Any) -> str:
        return await self.images.import_(chunks(data), **wanted)

    async def saved(self, *names: str) -> bytes:
        return b"".join([chunk async for chunk in await self.images.save(names)])

    def check_nothing_half_made(self) -> None:
        assert self.stores.leftovers() == []
        numbers = {str(layer.number) for layer in self.stores.layers.all()}
        assert self.stores.layer_directories() == numbers


async def chunks(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        await asyncio.sleep(0)
        yield data[start : start + size]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with stores(tmp_path / "data") as opened:
        yield Service(opened)


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {m.name: opened.extractfile(m).read() for m in opened if m.isfile()}  # type: ignore[union-attr]


# --- import -------------------------------------------------------------------------------------


def test_import_makes_an_image_with_changes_and_says_its_id(service: Service) -> None:
    progress: list[dict[str, Any]] = []

    async def work() -> None:
        image_id = await service.import_(
            gzip.compress(ROOTFS),
            repo="trixie",
            changes=['CMD ["bash"]', "ENV A=1", "LABEL a=b"],
            message="mine",
            platform="linux/arm64/v8",
            progress=progress.append,
        )
        assert progress == [{"status": image_id}]
        (summary,) = await service.images.list_images()
        assert summary["RepoTags"] == ["trixie:latest"]
        assert summary["Size"] == len(b"ID=x\n")
        assert summary["Labels"] == {"a": "b"}
        assert abs(summary["Created"] - time.time()) < 60
        shown = await service.images.inspect(image_id[7:19])
        assert (shown["Architecture"], shown["Variant"], shown["Os"]) == ("arm64", "v8", "linux")
        assert (shown["Comment"], shown["Config"]["Cmd"]) == ("mine", ["bash"])
        assert shown["RootFS"]["Layers"] == [f"sha256:{hashlib.sha256(ROOTFS).hexdigest()}"]
        record = await service.images.resolve("trixie")
        assert (
            record.id
            == image_id
            == f"sha256:{hashlib.sha256(record.raw_config.encode()).hexdigest()}"
        )
        assert record.container_config.env == ["A=1"]
        (step,) = await service.images.history("trixie")
        assert (step["Id"], step["Comment"], step["Size"]) == (image_id, "mine", 5)

    asyncio.run(work())
    (image,) = service.stores.catalog.all()
    assert service.recorder.events == [("tag", "trixie:latest"), ("import", image.id)]
    service.check_nothing_half_made()


def test_a_name_moves_to_the_new_image(service: Service) -> None:
    async def work() -> None:
        first = await service.import_(repo="app")
        second = await service.import_(tar(entry("other")), repo="app:latest")
        assert (await service.images.resolve("app")).id == second
        shown = await service.images.list_images({"dangling": ["true"]})
        assert [image["Id"] for image in shown] == [first]
        assert shown[0]["RepoTags"] == []

    asyncio.run(work())


def test_imports_at_the_same_time_share_one_layer(service: Service) -> None:
    async def work() -> None:
        ids = await asyncio.gather(*(service.import_(repo=f"app:{n}") for n in range(6)))
        assert len(set(ids)) == len(await service.images.list_images())

    asyncio.run(work())
    assert len(service.stores.layers.all()) == 1
    service.check_nothing_half_made()


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"repo": "Bad"}, "invalid reference format"),
        ({"changes": ["RUN x"]}, "RUN is not a valid change command"),
        ({"platform": "windows/amd64"}, "windows"),
        ({"platform": "a/b/c/d"}, "invalid platform"),
    ],
)
def test_a_wrong_request_is_refused_before_the_upload(
    service: Service, wanted: dict[str, Any], says: str
) -> None:
    with pytest.raises(errors.InvalidArgument, match=says):
        asyncio.run(service.import_(**wanted))
    service.check_nothing_half_made()


@pytest.mark.parametrize(
    "data", [b"no archive" * 1000, ROOTFS[:700], gzip.compress(ROOTFS)[:-9], b""]
)
def test_a_corrupt_image_file_is_one_sentence_and_leaves_nothing(
    service: Service, data: bytes
) -> None:
    async def work() -> None:
        for load in (service.import_(data, repo="x"), service.images.load(chunks(data))):
            with pytest.raises(errors.InvalidArgument, match="damaged") as caught:
                await load
            assert "\n" not in str(caught.value)

    asyncio.run(work())
    assert service.stores.catalog.all() == []
    service.check_nothing_half_made()


def test_a_client_that_goes_away_leaves_nothing(service: Service) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield ROOTFS[:600]
        raise ConnectionResetError

    async def stalled() -> AsyncIterator[bytes]:
        yield ROOTFS[:600]
        await asyncio.sleep(60)

    async def work() -> None:
        with pytest.raises(ConnectionResetError):
            await service.images.import_(broken(), repo="x")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await service.images.import_(stalled(), repo="x")

    asyncio.run(work())
    assert service.stores.catalog.all() == []
    service.check_nothing_half_made()


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    async def work(service: Service) -> None:
        await service.import_(repo="small")
        with pytest.raises(errors.ResourceExhausted, match="no space left"):
            await service.import_(tar(entry("big", os.urandom(6 << 20))), repo="big")
        assert [name.familiar for names in service.stores.catalog.all_names().values()
                for name in names] == ["small:latest"]  # fmt: skip
        await service.import_(tar(entry("next", b"n")), repo="next")

    with tmpfs(tmp_path / "full", "4m") as place, stores(place) as opened:
        service = Service(opened)
        asyncio.run(work(service))
        service.check_nothing_half_made()


@contextmanager
def tmpfs(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


KILLED = """
import io, os, signal, sys, threading, time
from pathlib import Path
from deskd.images.importing import ImportRequest, import_image
from deskd.domain.reference import parse
from tests.kernel.image_store import Stores
opened = Stores(Path(sys.argv[1]))
def killed_later():
    while not list(Path(opened.root.temporary).glob("layer-*/diff/*")):
        time.sleep(0.001)
    time.sleep(float(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=killed_later, daemon=True).start()
for number in range(10_000):
    with open(sys.argv[3], "rb") as file:
        import_image(opened.catalog, file, ImportRequest(reference=parse(f"x:{number}")))
"""


@pytest.mark.parametrize("delay_s", ["0", "0.013", "0.05", "0.11"])
def test_sigkill_in_an_import_leaves_a_consistent_store(tmp_path: Path, delay_s: str) -> None:
    archive = tmp_path / "rootfs.tar"
    archive.write_bytes(tar(*(entry(f"d/{number}", b"x" * 5000) for number in range(60))))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "data", delay_s, archive],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'guest-engine'}"},
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    with stores(tmp_path / "data") as opened:
        opened.layers.sweep().join()
        service = Service(opened)
        service.check_nothing_half_made()
        for image in opened.catalog.all():
            for layer in opened.layers.chain(image.config.diff_ids[-1]):
                assert b"".join(opened.layers.open_tar(layer)) == archive.read_bytes()
        asyncio.run(service.import_(repo="after"))


# --- save and load ------------------------------------------------------------------------------


def test_saved_images_load_with_the_same_ids(service: Service, tmp_path: Path) -> None:
    async def save() -> tuple[bytes, str, str]:
        base = await service.import_(repo="base", changes=["CMD x"])
        opened = service.stores
        opened.snapshots.create(CONTAINER, base)
        opened.snapshots.mounts(CONTAINER)
        Path(opened.snapshots.upper(CONTAINER), "new").write_text("new")
        config = (await service.images.resolve(base)).container_config
        child = await service.images.commit(
            CommitSource(CONTAINER, base, config), repo="child", tag="1", comment="c", author="me"
        )
        return await service.saved("child:1", "base"), base, child

    async def load(other: Service, archive: bytes) -> None:
        progress: list[dict[str, Any]] = []
        assert await other.images.load(chunks(archive), progress.append) == [child, base]
        said = [message["stream"] for message in progress if "stream" in message]
        assert said == [
            "Loaded image: child:1\n",
            "Loaded image: base:latest\n",
        ]
        shown = await other.images.inspect("child:1")
        assert (shown["Author"], shown["Comment"]) == ("me", "c")
        assert [step["Comment"] for step in await other.images.history("child:1")] == [
            "c",
            "Imported from -",
        ]
        assert await other.saved("child:1", "base") == archive
        usage = await other.images.disk_usage()
        assert usage["LayersSize"] == 8
        assert {i["SharedSize"] for i in usage["Images"]} == {5}
        assert {i["Containers"] for i in usage["Images"]} == {0}

    archive, base, child = asyncio.run(save())
    with stores(tmp_path / "other") as opened:
        asyncio.run(load(Service(opened), archive))
    assert ("save", child) in service.recorder.events
    check_oci_layout(members(archive))


def check_oci_layout(files: dict[str, bytes]) -> None:
    for name, data in files.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(data).hexdigest() == name.rpartition("/")[2]
    for descriptor in json.loads(files["index.json"])["manifests"]:
        manifest = json.loads(files["blobs/sha256/" + descriptor["digest"][7:]])
        for part in (manifest["config"], *manifest["layers"]):
            assert len(files["blobs/sha256/" + part["digest"][7:]]) == part["size"]


def test_skopeo_reads_and_writes_our_archives(service: Service, tmp_path: Path) -> None:
    archive, again = tmp_path / "ours.tar", tmp_path / "theirs.tar"

    async def work() -> None:
        image_id = await service.import_(repo="app", changes=["CMD x"])
        archive.write_bytes(await service.saved("app"))
        for kind in ("docker-archive", "oci-archive"):
            again.unlink(missing_ok=True)
            await asyncio.to_thread(
                subprocess.run,
                ["skopeo", "--insecure-policy", "copy", "-q",
                 f"{kind}:{archive}", f"{kind}:{again}:copied/{kind}:latest"],
                check=True,
            )  # fmt: skip
            await service.images.remove(image_id, force=True)
            assert await service.images.load(chunks(again.read_bytes(), 1 << 20)) == [image_id]
            assert (await service.images.resolve(f"copied/{kind}")).id == image_id

    asyncio.run(work())


def broken_archives() -> dict[str, tuple[bytes, str]]:
    layer = ROOTFS
    diff_id = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [diff_id]}}).encode()
    manifest = [{"Config": "c.json", "Layers": ["layer.tar"], "RepoTags": ["x:1"]}]

    def made(**files: bytes) -> bytes:
        given = {"c.json": config, "layer.tar": layer,
                 "manifest.json": json.dumps(manifest).encode()}  # fmt: skip
        given.update({name.replace("_", "."): data for name, data in files.items()})
        return tar(*(entry(name, data) for name, data in given.items() if data))

    return {
        "another layer": (made(layer_tar=tar(entry("evil"))), "no layer of the archive"),
        "damaged layer": (made(layer_tar=layer[:700]), "damaged"),
        "no layer": (made(layer_tar=b""), "no layer of the archive"),
        "no configuration": (made(c_json=b""), "names 'c.json', which is not in it"),
        "no manifest": (made(manifest_json=b""), "neither manifest.json nor index.json"),
        "manifest is no JSON": (made(manifest_json=b"[{"), "damaged"),
        "configuration is no JSON": (made(c_json=b"{"), "not valid"),
        "too many layers": (made(c_json=b'{"rootfs": {"type": "layers"}}'), "lists 1 layers"),
        "bad name": (made(manifest_json=json.dumps(
            [{**manifest[0], "RepoTags": ["UP"]}]).encode()), "invalid reference"),
        "escape": (made(manifest_json=json.dumps(
            [{**manifest[0], "Config": "../../etc/shadow"}]).encode()), "outside"),
        "flat root file system": (ROOTFS, "`docker import`"),
        "empty layout": (tar(entry("index.json", b'{"manifests": []}')), "no image for linux"),
    }  # fmt: skip


@pytest.mark.parametrize("name", broken_archives())
def test_a_broken_image_archive_is_one_sentence_and_leaves_nothing(
    service: Service, name: str
) -> None:
    archive, says = broken_archives()[name]
    with pytest.raises(errors.DeskdError, match=says) as caught:
        asyncio.run(service.images.load(chunks(archive)))
    assert "\n" not in str(caught.value)
    assert service.stores.catalog.all() == []
    assert service.stores.layers.all() == []
    service.check_nothing_half_made()


def test_one_bad_image_of_two_loads_neither(service: Service) -> None:
    async def work() -> bytes:
        await service.import_(repo="good")
        archive = members(await service.saved("good"))
        await service.images.remove("good")
        manifest = json.loads(archive["manifest.json"])
        manifest.append({**manifest[0], "Layers": ["blobs/missing"], "RepoTags": ["bad:1"]})
        manifest[1]["Config"] = "other.json"
        archive["other.json"] = b'{"rootfs": {"type": "layers", "diff_ids": ["sha256:0"]}}'
        archive["manifest.json"] = json.dumps(manifest).encode()
        return tar(*(entry(name, data) for name, data in archive.items()))

    archive = asyncio.run(work())
    with pytest.raises(errors.DataLoss):
        asyncio.run(service.images.load(chunks(archive)))
    assert service.stores.catalog.all() == []
    service.check_nothing_half_made()


def test_a_layer_that_was_changed_on_disk_is_not_saved_silently(service: Service) -> None:
    async def work() -> None:
        await service.import_(repo="app")
        (layer,) = service.stores.layers.all()
        Path(service.stores.layers.directory(layer), "etc/os-release").write_bytes(b"ID=y\n")
        with pytest.raises(errors.DataLoss, match="changed on disk"):
            await service.saved("app")

    asyncio.run(work())


def test_a_reader_that_stops_early_stops_the_saving(service: Service) -> None:
    async def work() -> None:
        await service.import_(tar(entry("big", os.urandom(20 << 20))), repo="big")
        stream = await service.images.save(["big"])
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(work())


def test_an_image_that_is_removed_while_it_is_saved_is_saved_whole(service: Service) -> None:
    async def work() -> None:
        image_id = await service.import_(tar(entry("big", os.urandom(20 << 20))), repo="big")
        plan = saving.plan_save(service.stores.catalog, ["big"])
        stream = await service.images.save(["big"])
        await service.images.remove("big")
        archive = b"".join([chunk async for chunk in stream])
        assert service.stores.layers.all() == [], "nobody needs them any more"
        assert service.stores.leftovers() == []
        assert await service.images.load(chunks(archive, 1 << 20)) == [image_id]
        await service.images.remove("big")
        with pytest.raises(errors.NotFound, match="No such image"):
            saving.save(service.stores.catalog, plan, lambda _: pytest.fail("something is written"))

    asyncio.run(work())


def test_bundled_images_load_once_and_stay_removed(tmp_path: Path) -> None:
    bundled = tmp_path / "images"
    bundled.mkdir()
    archive = bundled / "busybox.tar"
    script = REPOSITORY / "vm-images" / "busybox_image.py"
    made = subprocess.run(
        [sys.executable, script, archive], check=True, capture_output=True, text=True
    )
    bundled.joinpath("damaged.tar").write_bytes(b"junk")

    async def first(service: Service) -> None:
        service.images.start_bundled()
        record = await service.images.resolve("busybox")  # waits for the loading
        assert record.id == made.stdout.split()[-1]
        assert record.container_config.cmd == ["sh"]
        await service.images.close()
        await service.images.remove("busybox")

    async def second(service: Service) -> None:
        service.images.start_bundled()
        with pytest.raises(errors.NotFound, match="No such image: busybox:latest"):
            await service.images.resolve("busybox")

    with stores(tmp_path / "data") as opened:
        asyncio.run(first(Service(opened, bundled)))
    with stores(tmp_path / "data") as opened:
        asyncio.run(second(Service(opened, bundled)))


# --- names and removal --------------------------------------------------------------------------


def test_names_ids_and_prefixes_find_the_image(service: Service) -> None:
    async def work() -> None:
        image_id = await service.import_(repo="host:5000/app:1")
        await service.images.tag("host:5000/app:1", "app", "v2")
        for name in ("app:v2", image_id, image_id[7:], image_id[7:15], "docker.io/library/app:v2"):
            assert (await service.images.resolve(name)).id == image_id
        for name, shown in (("app", "app:latest"), ("nope:1", "nope:1"), ("0" * 64, "sha256:0")):
            with pytest.raises(errors.NotFound, match=f"No such image: {shown}"):
                await service.images.resolve(name)
        with pytest.raises(errors.InvalidArgument, match="invalid reference format"):
            await service.images.resolve("Not A Name")

    asyncio.run(work())


def test_filters_choose_what_is_listed(service: Service) -> None:
    async def work() -> None:
        await service.import_(repo="a/app:1", changes=["LABEL stage=old"])
        newer = await service.import_(tar(entry("x")), repo="b/tool:1", changes=["LABEL stage=new"])

        async def names(**filters: list[str]) -> list[str]:
            given = {name.rstrip("_"): values for name, values in filters.items()}
            found = await service.images.list_images(given)
            return [image["RepoTags"][0] for image in found]

        assert await names() == ["b/tool:1", "a/app:1"]
        assert await names(reference=["*/app"]) == ["a/app:1"]
        assert await names(reference=["*"]) == []
        assert await names(reference=["*/*/app"]) == [], "the name as it is shown"
        assert await names(reference=["docker.io/a/app"]) == ["a/app:1"]
        assert await names(reference=["a/app:*", "b/*:1"]) == ["b/tool:1", "a/app:1"]
        assert await names(label=["stage=new"]) == ["b/tool:1"]
        assert await names(label=["stage"]) == ["b/tool:1", "a/app:1"]
        assert await names(before=["b/tool:1"]) == ["a/app:1"]
        assert await names(since=["a/app:1"]) == ["b/tool:1"]
        assert await names(until=["1h"]) == []
        with pytest.raises(errors.InvalidArgument, match="invalid filter"):
            await names(colour=["blue"])
        assert (await service.images.resolve(newer)).id == newer

    asyncio.run(work())


@contextmanager
def conflict(text: str) -> Iterator[None]:
    with pytest.raises(errors.Conflict) as caught:
        yield
    assert str(caught.value) == f"conflict: {text}"


def test_removal_follows_dockers_rules(service: Service) -> None:
    async def work() -> None:
        images, users = service.images, service.users
        image_id = await service.import_(repo="app")
        short, user = image_id[7:19], CONTAINER[:12]
        await images.tag("app", "other")
        assert await images.remove("other") == [{"Untagged": "other:latest"}]
        await images.tag("app", "other")
        with conflict(
            f"unable to delete {short} (must be forced) - image is referenced in multiple "
            "repositories"
        ):
            await images.remove(image_id)
        await images.remove("other")
        users.uses = [ImageUse(CONTAINER, image_id, running=False)]
        with conflict(
            f'unable to remove repository reference "app" (must force) - container {user} is '
            f"using its referenced image {short}"
        ):
            await images.remove("app")
        with conflict(
            f"unable to delete {short} (must be forced) - image is being used by stopped "
            f"container {user}"
        ):
            await images.remove(short)
        users.uses = [ImageUse(CONTAINER, image_id, running=True)]
        with conflict(
            f"unable to delete {short} (cannot be forced) - image is being used by running "
            f"container {user}"
        ):
            await images.remove(short, force=True)
        assert await images.remove("app", force=True) == [{"Untagged": "app:latest"}]
        users.uses = [ImageUse(CONTAINER, image_id, running=False)]
        done = await images.remove(short, force=True)
        assert done[0] == {"Deleted": image_id}
        assert [set(step) for step in done[1:]] == [{"Deleted"}]
        with pytest.raises(errors.NotFound, match="No such image"):
            await images.remove("app")

    asyncio.run(work())
    service.check_nothing_half_made()
    assert service.stores.layers.all() == []


def test_children_hold_their_parents_and_take_them_along(service: Service) -> None:
    async def work() -> None:
        base = await service.import_(repo="base")
        service.stores.snapshots.create(CONTAINER, base)
        config = (await service.images.resolve(base)).container_config
        child = await service.images.commit(CommitSource(CONTAINER, base, config), repo="child")
        service.stores.snapshots.remove(CONTAINER)
        with pytest.raises(errors.Conflict, match=r"cannot be forced.*dependent child images"):
            await service.images.remove(base, force=True)
        assert await service.images.remove("base") == [{"Untagged": "base:latest"}]
        assert [i["Id"] for i in await service.images.list_images()] == [child]
        assert len(await service.images.list_images(all_=True)) == 2
        done = await service.images.remove("child")
        assert [step.get("Deleted") for step in done[1:3]] == [child, base]

    asyncio.run(work())
    assert service.stores.layers.all() == []
    service.check_nothing_half_made()


def test_prune_removes_what_nothing_uses(service: Service) -> None:
    async def work() -> None:
        loose = await service.import_(tar(entry("x", b"12345")))
        kept = await service.import_(repo="kept")
        used = await service.import_(tar(entry("u")), repo="used")
        service.users.uses = [ImageUse(CONTAINER, used, running=False)]
        pruned = await service.images.prune()
        assert pruned["ImagesDeleted"][0] == {"Deleted": loose}
        assert pruned["SpaceReclaimed"] == 5
        assert (await service.images.prune())["ImagesDeleted"] is None
        pruned = await service.images.prune({"dangling": ["false"]})
        assert {"Deleted": kept} in pruned["ImagesDeleted"]
        assert [i["Id"] for i in await service.images.list_images()] == [used]

    asyncio.run(work())
    service.check_nothing_half_made()


class Interleaved:
    """A real registry of containers; as soon as it has told who uses images, a further container
    begins to be made, as ``ContainerCreation`` makes it, and goes as far as it can go."""

    def __init__(self, opened: Stores, image_id: str) -> None:
        self._stores = opened
        self._image_id = image_id
        table = records.containers(
            opened.database, ContainerRecord, key=lambda r: r.id, name=lambda r: r.name
        )
        self._registry = ContainerRegistry(table, Events())
        self._creation = threading.Thread(target=self._create)
        self.refusal: errors.DeskdError | None = None

    def image_uses(self) -> Sequence[ImageUse]:
        told = self._registry.image_uses()
        self._creation.start()
        if not self._is_locked():
            self._creation.join()
        return told

    def _is_locked(self) -> bool:
        """Say whether the asking removal holds the database, so that the creation must wait."""
        with contextlib.closing(sqlite3.connect(self._stores.root.database, timeout=0)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            return False

    def _create(self) -> None:
        self._registry.unsettled(CONTAINER, self._image_id)
        try:
            self._stores.snapshots.create(CONTAINER, self._image_id)
        except errors.DeskdError as error:
            self.refusal = error

    def wait(self) -> None:
        self._creation.join()


@pytest.mark.parametrize("how", ["name", "ID", "forced", "dangling", "unused"])
def test_no_image_goes_under_a_container_that_is_being_made(tmp_path: Path, how: str) -> None:
    with stores(tmp_path / "data") as opened:
        images = Images(opened.catalog, Users(), Recorder(), opened.snapshots)
        repo = "" if how == "dangling" else "base"
        image_id = asyncio.run(images.import_(chunks(ROOTFS), repo=repo))
        users = Interleaved(opened, image_id)
        images = Images(opened.catalog, users, Recorder(), opened.snapshots)
        if how in ("name", "forced"):
            asyncio.run(images.remove("base", force=how == "forced"))
        elif how == "ID":
            asyncio.run(images.remove(image_id))
        else:
            asyncio.run(images.prune({"dangling": ["true" if how == "dangling" else "false"]}))
        users.wait()
        is_there = opened.catalog.by_id(image_id) is not None
        has_root = records.roots(opened.database).has(CONTAINER)
        assert is_there == has_root
        if not is_there:
            assert isinstance(users.refusal, errors.NotFound)
            assert not Path(opened.root.container(CONTAINER)).exists()
            assert opened.layers.all() == []
