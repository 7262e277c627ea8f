"""What an image brings for a volume, over the Engine API: owners, modes, links, attributes; whole
or not at all."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.engine_process import API, IMAGE, Api, EngineProcess, busybox_tar, until

pytestmark = pytest.mark.root

FILES = 1500


@pytest.fixture(autouse=True)
def no_image_stays(engine: EngineProcess) -> Iterator[None]:
    """Remove ``filled``: other tests of this engine count images, and layers that are left."""
    yield
    engine.remove_everything()
    for image in engine.api.get("/images/json"):
        if image["RepoTags"] != [f"{IMAGE}:latest"]:
            engine.api.delete(f"/images/{image['Id']}", force=True)


def image(api: Api, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    """Bring in the image ``filled``: busybox and ``members``, with /data as a volume."""
    block = io.BytesIO(busybox_tar())
    block.seek(0)
    made = io.BytesIO()
    with tarfile.open(fileobj=block) as old, tarfile.open(fileobj=made, mode="w") as new:
        for member in old:
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
        for member, content in members:
            new.addfile(member, io.BytesIO(content))
    change = quote("VOLUME /data")
    status, _, answer = api.raw(
        "POST",
        f"{API}/images/create?fromSrc=-&repo=filled&changes={change}",
        made.getvalue(),
    )
    assert status == 200, answer


def entry(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), 0o644, 1_600_000_000
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def directory(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def data_of(api: Api, name: str) -> Path:
    return Path(api.get(f"/volumes/{name}")["Mountpoint"])


def fill(api: Api, *binds: str) -> str:
    document = {"Image": "filled", "Cmd": ["true"], "HostConfig": {"Binds": list(binds)}}
    container: str = api.post("/containers/create", document)["Id"]
    return container


def test_owners_modes_links_and_attributes(api: Api) -> None:
    capability = "SCHILY.xattr.user.kind"
    image(
        api,
        directory("data", uid=5, gid=6, mode=0o2750),
        entry("data/one", b"1", uid=7, gid=8, mode=0o4711, pax_headers={capability: "special"}),
        entry("data/two", type=tarfile.LNKTYPE, linkname="data/one"),
        entry("data/sym", type=tarfile.SYMTYPE, linkname="/one"),
        directory("data/empty", mode=0o1777),
    )
    fill(api, "named:/data")
    place = data_of(api, "named")
    top, one = place.stat(), place / "one"
    assert (top.st_uid, top.st_gid, top.st_mode & 0o7777) == (5, 6, 0o2750)
    found = one.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (7, 8, 0o4711)
    assert (found.st_nlink, int(found.st_mtime)) == (2, 1_600_000_000)
    assert os.getxattr(one, "user.kind") == b"special"
    assert (place / "sym").readlink() == Path("/one")
    assert (place / "empty").stat().st_mode & 0o7777 == 0o1777
    # An anonymous volume gets the same; one that has something, or wants nothing, keeps it.
    (shown,) = api.inspect(fill(api))["Mounts"]
    assert {path.name for path in Path(shown["Source"]).iterdir()} == {"one", "two", "sym", "empty"}
    (place / "sym").unlink()
    fill(api, "named:/data")
    assert not (place / "sym").exists()
    fill(api, "bare:/data:nocopy")
    assert list(data_of(api, "bare").iterdir()) == []


def test_a_copy_that_is_killed_leaves_an_empty_volume(own_engine: EngineProcess) -> None:
    api = own_engine.api
    names = [f"data/{number:05}" for number in range(FILES)]
    image(api, directory("data"), *(entry(name, b"x" * 100) for name in names))
    api.post("/volumes/create", {"Name": "cut"})
    place = data_of(api, "cut")
    request = subprocess.Popen(
        [
            *("curl", "-s", "--unix-socket", own_engine.socket, "-X", "POST"),
            *("-H", "Content-Type: application/json", "-o", "/dev/null"),
            *("-d", '{"Image": "filled", "Cmd": ["true"], "HostConfig": {"Binds": ["cut:/data"]}}'),
            f"http://engine{API}/containers/create",
        ]
    )
    until(lambda: list(place.parent.glob("fill-*")) or any(place.iterdir()))
    own_engine.kill()
    request.wait(60)
    assert len(list(place.iterdir())) in (0, FILES)
    own_engine.start()
    containers = api.get("/containers/json", all=True)  # it answers when the start is done
    assert list(place.parent.iterdir()) == [place], "what was begun is swept"
    for container in containers:
        api.delete(f"/containers/{container['Id']}")
    fill(api, "cut:/data")
    assert len(list(place.iterdir())) == FILES


def test_a_full_disk_fills_no_volume_by_half(own_engine: EngineProcess) -> None:
    api = own_engine.api
    image(api, directory("data"), *(entry(f"data/{n}", b"x" * 100_000) for n in range(20)))
    volumes = own_engine.data_root / "volumes"
    volumes.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", str(volumes)], check=True)
    try:
        document = {"Image": "filled", "Cmd": ["true"], "HostConfig": {"Binds": ["small:/data"]}}
        error = api.error("POST", "/containers/create", document)
        assert "no space left on the disk of the data root" in error.message
        place = data_of(api, "small")
        assert list(place.parent.iterdir()) == [place]
        assert list(place.iterdir()) == []
        assert api.get("/containers/json", all=True) == []
        api.delete("/volumes/small")
        assert list(volumes.iterdir()) == []
    finally:
        subprocess.run(["umount", str(volumes)], check=True)
