"""``desk system check``: every kind of damage to the store is found, said in one sentence, and
repaired where it can be."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cli_process import Cli, Result
from tests.engine_process import API, IMAGE, Api, EngineProcess, UnixConnection, until
from tests.registry_process import running_registry

pytestmark = pytest.mark.root


@pytest.fixture
def desk(engine: EngineProcess, tmp_path: Path) -> Cli:
    home = tmp_path / "home"
    home.mkdir()
    return Cli(engine.socket, home)


CAPABILITY = struct.pack("<5I", 0x02000000, 1 << 10, 0, 0, 0)  # one of version 2
XATTRS = {"trusted.note": b"\xff\0x", "security.capability": CAPABILITY}


def layer_tar(*names: str, text: bytes = b"hello\n") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        directory = tarfile.TarInfo("dir")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(directory)
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(text)
            member.pax_headers = {
                f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
                for key, value in XATTRS.items()
            }
            tar.addfile(member, io.BytesIO(text))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, names[0]
        tar.addfile(link)
    return buffer.getvalue()


class Store:
    """The store of the shared engine, with an image ``victim`` of one layer in it."""

    def __init__(self, engine: EngineProcess) -> None:
        self.api = engine.api
        self.root = engine.data_root
        self.bring_in()
        self.image = self.api.get("/images/victim/json")

    def bring_in(self) -> None:
        status, _, said = self.api.raw(
            "POST", f"{API}/images/create?fromSrc=-&repo=victim", layer_tar("dir/one", "two")
        )
        assert status == 200, said

    @property
    def chain_id(self) -> str:
        found: str = self.image["RootFS"]["Layers"][0]
        return found

    @property
    def layer(self) -> Path:
        (number,) = self.execute("SELECT number FROM layers WHERE id = ?", self.chain_id)[0]
        return self.root / "layers" / str(number)

    def execute(self, sql: str, *values: Any) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.root / "engine.db", timeout=10)) as database:
            database.execute("PRAGMA foreign_keys = OFF")
            rows = database.execute(sql, values).fetchall()
            database.commit()
        return rows

    def change_document(self, table: str, key: str, **fields: Any) -> None:
        ((document,),) = self.execute(f"SELECT document FROM {table} WHERE id = ?", key)
        changed = json.dumps({**json.loads(document), **fields}).encode()
        self.execute(f"UPDATE {table} SET document = ? WHERE id = ?", changed, key)

    def save(self) -> bytes:
        status, _, data = self.api.raw("GET", f"{API}/images/victim/get")
        assert status == 200
        return data

    def load(self, archive: bytes) -> None:
        status, _, said = self.api.raw("POST", f"{API}/images/load", archive)
        assert status == 200, said
        assert b"errorDetail" not in said, said


@pytest.fixture
def store(engine: EngineProcess) -> Iterator[Store]:
    made = Store(engine)
    yield made
    engine.remove_everything()
    for image in engine.api.get("/images/json", all=True):
        if f"{IMAGE}:latest" not in image["RepoTags"]:
            engine.api.delete(f"/images/{image['Id']}", force=True)
    assert engine.api.check_store() == []


def checked(desk: Cli, *flags: str) -> Result:
    return desk("system", "check", *flags)


def test_a_whole_store_is_right(desk: Cli, store: Store) -> None:
    store.api.create("true")
    for flags in ((), ("--deep",), ("--repair",), ("--repair", "--deep")):
        assert checked(desk, *flags) == Result(0, "Everything is right.\n", "")


# --- layers -------------------------------------------------------------------------------------


def shorten(layer: Path) -> None:
    with (layer / "diff" / "dir" / "one").open("r+b") as file:
        file.truncate(3)


def same_size(layer: Path) -> None:
    path = layer / "diff" / "dir" / "one"
    times = path.stat()
    path.write_bytes(b"HELLO\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def unset(name: str) -> Callable[[Path], None]:
    return lambda layer: os.removexattr(layer / "diff" / "two", name)


def set_to(place: str, name: str, value: bytes) -> Callable[[Path], None]:
    return lambda layer: os.setxattr(layer / "diff" / place, name, value)


def shorten_recipe(layer: Path) -> None:
    recipe = layer / "recipe"
    recipe.write_bytes(recipe.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "deep", "words"),
    [
        (shutil.rmtree, False, "its directory is missing"),
        (shorten, False, "its file /dir/one has another size"),
        (lambda layer: (layer / "diff" / "two").unlink(), False, "its file /two is missing"),
        (shorten_recipe, False, "the description of its tar is"),
        (lambda layer: (layer / "recipe").unlink(), False, "the description of its tar is"),
        (same_size, True, "its content does not have its digest any more"),
        (lambda layer: (layer / "diff" / "two").chmod(0o777), True, "/two was changed"),
        (lambda layer: os.chown(layer / "diff" / "dir", 7, 7), True, "/dir was changed"),
        (unset("trusted.note"), True, "/two was changed"),
        (unset("security.capability"), True, "/two was changed"),
        (set_to("two", "trusted.note", b"other"), True, "/two was changed"),
        (set_to("dir", "trusted.more", b""), True, "/dir was changed"),
        (set_to("dir", "trusted.overlay.opaque", b"y"), True, "/dir was changed"),
        (lambda layer: (layer / "diff" / "link").unlink(), True, "its entry /link is missing"),
        (lambda layer: (layer / "diff" / "new").touch(), True, "/new was put into it"),
    ],
    ids=["gone", "short", "file gone", "recipe short", "recipe gone", "content", "mode", "owner",
         "attribute gone", "capability gone", "attribute", "attribute more", "opaque",
         "link", "foreign"],
)  # fmt: skip
def test_damaged_layers(
    desk: Cli, store: Store, damage: Callable[[Path], None], deep: bool, words: str
) -> None:
    archive = store.save()
    container = store.api.post("/containers/create", {"Image": "victim", "Cmd": ["x"]})["Id"]
    damage(store.layer)
    if deep:
        assert checked(desk).code == 0  # the cheap check cannot see it
    flags = ["--deep"] if deep else []
    found = checked(desk, *flags)
    assert found.code == 1
    assert words in found.out
    assert found.out.startswith(f"wrong: the layer {store.chain_id[7:19]} is damaged: ")
    assert "Add --repair" in found.err
    repaired = checked(desk, "--repair", *flags)
    assert repaired.code == 1, "the image lacks a layer now"
    assert "works again once its image is pulled or loaded" in repaired.out
    assert f"the image {store.image['Id'][7:19]} lacks the layer" in repaired.out
    assert f"the container {container[:12]} stands on a layer that is not there" in repaired.out
    refused = store.api.error("POST", "/containers/create", {"Image": "victim", "Cmd": ["x"]})
    assert "is missing from the layer store: pull or load its image again" in refused.message
    store.load(archive)
    assert checked(desk, "--deep") == Result(0, "Everything is right.\n", "")
    assert store.save() == archive


def test_a_damaged_layer_is_made_again_from_a_copy(desk: Cli, store: Store) -> None:
    """The same layer lies on another one, too: nothing is lost."""
    archive = store.save()
    container = store.api.create("true")
    both = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as source:
        manifest = json.load(source.extractfile("manifest.json"))  # type: ignore[arg-type]
        layer = manifest[0]["Layers"][0]
        data = source.extractfile(layer).read()  # type: ignore[union-attr]
        config = json.load(source.extractfile(manifest[0]["Config"]))  # type: ignore[arg-type]
    config["rootfs"]["diff_ids"] *= 2
    config["history"] *= 2
    entry = [{"Config": "c.json", "RepoTags": ["twice:1"], "Layers": ["layer.tar", "layer.tar"]}]
    with tarfile.open(fileobj=both, mode="w") as tar:
        for name, content in (
            ("layer.tar", data),
            ("c.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(entry).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    store.load(both.getvalue())
    shutil.rmtree(store.layer / "diff")
    done = checked(desk, "--repair")
    assert done.code == 0, done
    assert "it was made again from a copy." in done.out
    assert done.out.endswith("Everything was repaired.\n")
    assert checked(desk, "--deep").out == "Everything is right.\n"
    assert store.save() == archive
    store.api.delete(f"/containers/{container}")


def test_an_incomplete_image_is_completed_by_a_pull(
    desk: Cli, store: Store, engine: EngineProcess, tmp_path: Path
) -> None:
    with running_registry(tmp_path / "registry", before=engine.inside_network()) as address:
        name = f"{address}/victim:1"
        desk.ok("tag", "victim", name)
        desk.ok("push", "-q", name)
        archive = store.save()
        shutil.rmtree(store.layer)
        assert checked(desk, "--repair").code == 1
        desk.ok("pull", "-q", name)
        assert checked(desk, "--deep").out == "Everything is right.\n"
        assert store.save() == archive
        desk.ok("rmi", name)


def test_a_layer_in_use_is_left_until_its_container_stops(desk: Cli, store: Store) -> None:
    container = store.api.run("sleep", "600")
    image = store.api.get(f"/images/{IMAGE}/json")
    archive = store.api.raw("GET", f"{API}/images/{IMAGE}/get", timeout_s=60)[2]
    (chain_id,) = image["RootFS"]["Layers"]
    (number,) = store.execute("SELECT number FROM layers WHERE id = ?", chain_id)[0]
    (store.root / "layers" / str(number) / "diff" / "bin" / "vi").unlink()
    left = checked(desk, "--repair", "--deep")
    assert left.code == 1
    assert f"stop the containers {container[:12]}, then repair it." in left.out
    store.api.delete(f"/containers/{container}", force=True)
    assert checked(desk, "--repair", "--deep").code == 1  # the image lacks its layer now
    store.load(archive)
    assert store.api.output("echo", "here again") == "here again\n"


def test_what_belongs_to_nothing_is_removed(desk: Cli, store: Store) -> None:
    stray = [store.root / "layers" / "9999", store.root / "tmp" / "layer-half",
             store.root / "containers" / ("ab" * 32)]  # fmt: skip
    for place in stray:
        (place / "diff").mkdir(parents=True)
        (place / "diff" / "file").write_text("x")
    found = checked(desk)
    assert found.code == 1
    for place, owner in zip(stray, ("layer", "layer", "container"), strict=True):
        assert f"the directory {place} belongs to no {owner}" in found.out
    done = checked(desk, "--repair")
    assert done.code == 0, done
    assert not any(place.exists() for place in stray)


def test_stale_mounts_are_taken_away(desk: Cli, store: Store) -> None:
    place = store.root / "tmp" / "old mount"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=True)
    found = checked(desk)
    assert f"something is mounted at {place}" in found.out
    assert checked(desk, "--repair").code == 0
    assert not place.is_mount()
    place.rmdir()


# --- the database -------------------------------------------------------------------------------


def test_names_of_images_that_are_not_there(desk: Cli, store: Store) -> None:
    missing = "sha256:" + "ab" * 32
    document = json.dumps({"reference": "docker.io/library/lost:1", "image": missing}).encode()
    store.execute(
        "INSERT INTO tags VALUES (?, ?, ?)", "docker.io/library/lost:1", missing, document
    )
    done = checked(desk, "--repair")
    assert done.code == 0, done
    assert "the name docker.io/library/lost:1 means the image abababababab, which is not there" in (
        done.out
    )
    assert checked(desk).out == "Everything is right.\n"


def test_images_whose_record_was_changed(desk: Cli, store: Store) -> None:
    store.change_document("images", store.image["Id"], size_bytes=1, parent="sha256:" + "cd" * 32)
    done = checked(desk, "--repair")
    assert done.code == 0, done
    assert "names the parent cdcdcdcdcdcd, which is not there" in done.out
    assert "is noted with 1 bytes and has" in done.out
    assert store.api.get("/images/victim/json")["Size"] == store.image["Size"]
    store.change_document("images", store.image["Id"], raw_config="{}")
    done = checked(desk, "--repair")
    assert done.code == 0, done
    assert "is not what its ID says: the image was removed; pull or load it again." in done.out
    assert store.api.error("GET", "/images/victim/json").status == 404
    store.bring_in()


def test_layers_and_roots_that_nothing_uses(desk: Cli, store: Store) -> None:
    root = json.dumps({"container_id": "ef" * 32, "chain_id": "", "image": ""}).encode()
    store.execute("INSERT INTO roots VALUES (?, ?)", "ef" * 32, root)
    store.execute("DELETE FROM tags WHERE image = ?", store.image["Id"])
    store.execute("DELETE FROM images WHERE id = ?", store.image["Id"])
    layer = store.layer
    found = checked(desk)
    assert found.code == 1
    assert "a root is noted for the container efefefefefef, which is not there" in found.out
    assert "1 layers belong to no image and no container" in found.out
    assert checked(desk, "--repair").code == 0
    assert not layer.exists()


def test_a_containers_directories(desk: Cli, store: Store) -> None:
    quiet, writer = store.api.create("true"), store.api.create("touch", "/written")
    for container in (quiet, writer):
        store.api.post(f"/containers/{container}/start")
        assert store.api.wait(container) == 0
    upper = store.root / "containers" / writer / "upper"
    before = upper.stat()
    shutil.rmtree(upper)
    done = checked(desk, "--repair")
    assert done.code == 0, done
    assert done.out.count("an empty one was made; what it had written is lost.") == 1
    after = upper.stat()
    assert (before.st_mode, before.st_uid, before.st_gid) == (
        after.st_mode, after.st_uid, after.st_gid,
    )  # fmt: skip
    for container in (quiet, writer):
        store.api.post(f"/containers/{container}/start")
        assert store.api.wait(container) == 0


def test_volumes_and_their_directories(desk: Cli, store: Store) -> None:
    api, volumes = store.api, store.root / "volumes"
    for name in ("emptied", "forgotten", "used"):
        api.post("/volumes/create", {"Name": name})
        (volumes / name / "_data" / "file").write_text("precious")
    user = api.create("cat", "/data/file", HostConfig={"Binds": ["used:/data"]})
    shutil.rmtree(volumes / "emptied" / "_data")
    store.execute("DELETE FROM volumes WHERE id IN ('forgotten', 'used')")
    (volumes / "not a name").mkdir()
    lines = [
        f"the volume emptied lacks its directory {volumes}/emptied/_data",
        f"the container {user[:12]} has the volume used, which is not there",
        f"the directory {volumes}/forgotten belongs to no volume",
        f"the directory {volumes}/not a name belongs to no volume",
    ]
    found = checked(desk)
    assert found.code == 1
    for line in lines:
        assert f"{line}: run the check with --repair." in found.out
    done = checked(desk, "--repair")
    assert done.code == 1, "one of them has no name that a volume can have"
    assert "an empty one was made; what it held is lost." in done.out
    assert "it is the volume forgotten again: look into it" in done.out
    assert "it cannot be repaired: create not a name:" in done.out
    (volumes / "not a name").rmdir()
    assert checked(desk).out == "Everything is right.\n"
    assert list((volumes / "emptied" / "_data").iterdir()) == []
    assert (volumes / "forgotten" / "_data" / "file").read_text() == "precious"
    api.post(f"/containers/{user}/start")
    assert api.wait(user) == 0
    assert api.logs(user) == b"precious"
    api.delete(f"/containers/{user}")
    for name in ("emptied", "forgotten", "used"):
        api.delete(f"/volumes/{name}")
    assert list(volumes.iterdir()) == []


def test_volumes_whose_making_was_broken_off(
    engine: EngineProcess, desk: Cli, store: Store
) -> None:
    """What is empty goes at the engine's start; what has files stays and is shown."""
    volumes = store.root / "volumes"
    for name in ("bare", "begun/_data", "filled/_data"):
        (volumes / name).mkdir(parents=True)
    (volumes / "filled" / "_data" / "file").write_text("precious")
    engine.kill()
    engine.start()
    found = checked(desk)
    wrong = [line for line in found.out.splitlines() if line.startswith("wrong: ")]
    assert wrong == [
        f"wrong: the directory {volumes}/filled belongs to no volume: run the check with --repair."
    ]
    shutil.rmtree(volumes / "filled")
    assert list(volumes.iterdir()) == []


def test_a_removed_volumes_files_never_come_back(desk: Cli, store: Store) -> None:
    """A volume that has the name of one whose removal was not finished is empty."""
    api, volumes = store.api, store.root / "volumes"
    for _ in range(20):
        api.post("/volumes/create", {"Name": "again"})
        place = volumes / "again" / "_data"
        assert list(place.iterdir()) == []
        for number in range(50):
            (place / str(number)).touch()
        with ThreadPoolExecutor(2) as pool:
            removing = pool.submit(api.delete, "/volumes/again")
            checking = pool.submit(checked, desk, "--repair")
            removing.result()
            assert checking.result() == Result(0, "Everything is right.\n", "")
    assert list(volumes.iterdir()) == []


def test_a_container_without_a_root(desk: Cli, store: Store) -> None:
    container = store.api.create("true")
    store.execute("DELETE FROM roots WHERE id = ?", container)
    done = checked(desk, "--repair")
    assert done.code == 1
    assert f"the container {container[:12]} has no root file system" in done.out


def test_a_client_that_leaves_ends_its_check(api: Api) -> None:
    for _ in range(3):
        leaving = UnixConnection(api.path)
        leaving.request("POST", f"{API}/desk/store/check?deep=1")
        leaving.close()
    status = until(lambda: api.raw("POST", f"{API}/desk/store/check")[0] == 200)
    assert status
    assert api.check_store() == []
