"""The bin: what is removed by way of it is gone for everybody, and comes back whole."""

from __future__ import annotations

import functools
import io
import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.engine_process import Api, EngineProcess, busybox_tar, running_engine, until

pytestmark = pytest.mark.root


def contents(api: Api) -> dict[str, dict[str, Any]]:
    return {entry["Name"]: entry for entry in api.get("/desk/bin")["Entries"]}


def restore(api: Api, *names: str) -> Any:
    found = contents(api)
    return api.post("/desk/bin/restore", {"Ids": [found[name]["Id"] for name in names]})


def make_image(api: Api, repository: str, mark: str) -> str:
    """Import an image that shares no layer with another one; return its ID."""
    archive = io.BytesIO(busybox_tar())
    with tarfile.open(fileobj=archive, mode="a") as tar:
        tar.addfile(tarfile.TarInfo(mark))
    status, _, data = api.raw(
        "POST", f"/v1.47/images/create?fromSrc=-&repo={repository}", archive.getvalue()
    )
    assert status == 200
    identifier: str = json.loads(data.splitlines()[-1])["status"]
    return identifier


def test_a_container_comes_back_with_its_files_log_and_volumes(own_engine: EngineProcess) -> None:
    api = own_engine.api
    write = "echo said; echo kept >/file; echo data >/data/file; exit 7"
    host = {"Mounts": [{"Type": "volume", "Target": "/data"}]}
    old = api.run("sh", "-c", write, name="web", HostConfig=host, Labels={"a": "b"})
    assert api.wait(old) == 7
    before = api.inspect("web")
    (volume,) = (point["Name"] for point in before["Mounts"])
    with api.events() as events:
        api.delete("/containers/web", v=True, bin="one")
        seen = [(event := next(events))["Type"] + " " + event["Action"] for _ in range(2)]
    assert seen == ["container destroy", "volume destroy"]

    # Nobody sees it, and its name is free; neither a restart nor a check of the store touches it.
    assert api.error("GET", "/containers/web/json").status == 404
    assert api.error("GET", f"/containers/{old}/json").status == 404
    assert api.get("/containers/json", all=True) == []
    assert not api.get("/volumes")["Volumes"]
    new = api.create("true", name="web")
    own_engine.kill()
    own_engine.start()
    assert api.check_store() == []
    found = contents(api)
    assert {name: entry["Kind"] for name, entry in found.items()} == {
        "web": "container",
        volume: "volume",
    }
    assert {entry["Group"] for entry in found.values()} == {"one"}
    assert found["web"]["Size"] >= len("kept\n")

    refused = restore(api, "web")["Failed"]
    assert refused[0]["Reason"].startswith("there is a container web now: ")
    api.delete(f"/containers/{new}")
    done = restore(api, "web", volume)
    assert (done["Failed"], [each["Name"] for each in done["Restored"]]) == ([], [volume, "web"])
    assert api.inspect("web") == before
    assert api.logs("web") == b"said\n"
    assert contents(api) == {}
    api.post("/containers/web/start")
    assert api.wait("web") == 7
    shown = api.output("cat", "/data/file", HostConfig={"VolumesFrom": ["web"]})
    assert shown == "data\n"
    assert api.check_store() == []


def test_what_no_client_asked_for_is_gone_at_once(own_engine: EngineProcess) -> None:
    api = own_engine.api
    container = api.create("true")
    api.delete(f"/containers/{container}")
    api.post("/volumes/create", {"Name": "gone"})
    api.delete("/volumes/gone")
    assert api.get("/desk/bin")["Entries"] == []
    # A container that removes itself does so whoever ends it.
    container = api.run("sleep", "600", HostConfig={"AutoRemove": True})
    api.delete(f"/containers/{container}", force=True, bin="1")
    until(lambda: not api.get("/containers/json", all=True))
    assert api.error("POST", "/desk/bin/restore", {"Ids": ["none"]}).status == 404


def test_an_image_keeps_its_layers_and_names_where_they_are_free(own_engine: EngineProcess) -> None:
    api = own_engine.api
    image = make_image(api, "mine", "first")
    api.post("/images/mine/tag", repo="mine", tag="2")
    api.delete("/images/mine", bin="a")  # one of two names
    assert contents(api)["mine:latest"]["Size"] == 0
    stands = api.create("true", name="stands", Image="mine:2")
    api.delete(f"/containers/{stands}", bin="a")
    done = api.delete("/images/mine:2", bin="a")
    assert {"Deleted": image} in done
    assert api.error("GET", f"/images/{image}/json").status == 404

    # Others may have the name meanwhile; layers outlive prunes, checks and restarts.
    other = make_image(api, "mine", "second")
    api.post("/images/prune", filters={"dangling": ["false"]})
    own_engine.kill()
    own_engine.start()
    assert api.check_store() == []
    assert api.error("POST", "/containers/create", {"Image": "mine:2"}).status == 404
    make_image(api, "mine", "third")
    done = restore(api, "mine:2", "stands", "mine:latest")
    assert done["Failed"] == []
    (warning,) = (each["Warning"] for each in done["Restored"] if each["Name"] == "mine:latest")
    assert "mine:latest is the name of" in warning
    assert api.get("/images/mine:2/json")["Id"] == image
    assert api.get("/images/mine/json")["Id"] not in (image, other)
    api.post("/containers/stands/start")
    assert api.wait("stands") == 0
    assert api.check_store() == []


def test_a_prune_goes_into_the_bin_and_emptying_frees_the_disk(own_engine: EngineProcess) -> None:
    api = own_engine.api
    image = make_image(api, "big", "big")
    api.wait(api.run("sh", "-c", "head -c 3000000 /dev/zero >/file", name="writer", Image="big"))
    writer = api.inspect("writer")["Id"]
    api.post("/volumes/create", {"Name": "spare"})
    place = own_engine.data_root / "volumes"
    (place / "spare" / "_data" / "file").write_bytes(b"x" * 1_000_000)
    told = api.post("/containers/prune", bin="p")
    assert (told["ContainersDeleted"], told["SpaceReclaimed"]) == ([writer], 0)
    told = api.post("/volumes/prune", filters={"all": ["true"]}, bin="p")
    assert (told["VolumesDeleted"], told["SpaceReclaimed"]) == (["spare"], 0)
    told = api.post("/images/prune", filters={"dangling": ["false"]}, bin="p")
    assert {"Deleted": image} in told["ImagesDeleted"]
    assert told["SpaceReclaimed"] == 0

    found = contents(api)
    assert found["writer"]["Size"] >= 3_000_000
    assert found["spare"]["Size"] == 1_000_000
    assert found["big:latest"]["Size"] > 100_000
    assert api.get("/system/df")["LayersSize"] == 0
    total = api.get("/desk/bin")["Size"]
    assert total == sum(entry["Size"] for entry in found.values())
    assert api.delete("/desk/bin", id=found["spare"]["Id"])["SpaceReclaimed"] == 1_000_000
    assert api.delete("/desk/bin")["SpaceReclaimed"] == total - 1_000_000
    assert api.get("/desk/bin")["Entries"] == []
    until(lambda: not list((own_engine.data_root / "containers").iterdir()))
    assert list(place.iterdir()) == []
    assert api.check_store() == []


def test_the_bin_has_limits_and_can_be_everybodys() -> None:
    limits = ("--bin-size", "2500k", "--bin-clients", "all", "--bin-age", "24h")
    with running_engine(*limits) as engine:
        api = engine.api
        for number in range(4):
            api.post("/volumes/create", {"Name": f"v{number}"})
            file = engine.data_root / "volumes" / f"v{number}" / "_data" / "file"
            file.write_bytes(b"x" * 1_000_000)
            api.delete(f"/volumes/v{number}")
        until(lambda: set(contents(api)) == {"v2", "v3"})
    with running_engine("--bin-age", "0") as engine:
        api = engine.api
        api.post("/volumes/create", {"Name": "plain"})
        api.delete("/volumes/plain", bin="1")
        assert api.get("/desk/bin")["Entries"] == []


def test_a_volume_survives_an_engine_that_dies_while_it_moves(own_engine: EngineProcess) -> None:
    """Each of the steps of a removal and of a return is the last one that was done."""
    api = own_engine.api
    volumes = own_engine.data_root / "volumes"

    def file(name: str) -> bytes:
        return (volumes / name / "_data" / "file").read_bytes()

    for name in ("kept", "moved", "returned"):
        api.post("/volumes/create", {"Name": name})
        (volumes / name / "_data" / "file").write_bytes(name.encode())
        api.delete(f"/volumes/{name}", bin="1")
    found = contents(api)
    own_engine.kill()
    database = sqlite3.connect(own_engine.data_root / "engine.db")
    documents = dict(database.execute("SELECT id, document FROM bin"))

    def moving(name: str) -> None:
        """Make the entry say that its volume is on the way, and the volume's record be there."""
        document = json.loads(documents[found[name]["Id"]])
        database.execute(
            "INSERT INTO volumes (id, document) VALUES (?, ?)",
            (name, json.dumps(document["payload"]).encode()),
        )
        text = json.dumps({**document, "moving": True}).encode()
        database.execute("UPDATE bin SET document = ? WHERE id = ?", (text, document["id"]))

    moving("kept")  # died before the rename
    (volumes / f".bin-{found['kept']['Id']}").rename(volumes / "kept")
    moving("moved")  # died after it
    (volumes / f".bin-{found['returned']['Id']}").rename(volumes / "returned")  # on its return
    database.commit()
    database.close()
    own_engine.start()
    assert {volume["Name"] for volume in api.get("/volumes")["Volumes"]} == {"kept", "returned"}
    assert (file("kept"), file("returned")) == (b"kept", b"returned")
    assert set(contents(api)) == {"moved"}
    assert restore(api, "moved")["Failed"] == []
    assert file("moved") == b"moved"
    assert api.check_store() == []


def test_what_was_being_deleted_when_the_engine_died_is_swept(own_engine: EngineProcess) -> None:
    api = own_engine.api
    api.wait(api.run("sh", "-c", "echo >/file", name="writer"))
    api.delete("/containers/writer", bin="1")
    api.post("/volumes/create", {"Name": "spare"})
    api.delete("/volumes/spare", bin="1")
    own_engine.kill()
    database = sqlite3.connect(own_engine.data_root / "engine.db")
    database.execute("DELETE FROM bin")  # the first step of a deletion
    database.commit()
    database.close()
    own_engine.start()
    assert contents(api) == {}
    for place in (own_engine.data_root / "containers", own_engine.data_root / "volumes"):
        until(functools.partial(_is_empty, place))
    assert api.check_store() == []


def _is_empty(place: Path) -> bool:
    return not list(place.iterdir())
