"""The whole of a container's files as one archive."""

from __future__ import annotations

import io
import tarfile

import pytest

from tests.engine_process import API, Api

pytestmark = pytest.mark.root


@pytest.mark.parametrize("running", [True, False])
def test_the_root_is_copied_without_the_kernels_own_trees(api: Api, *, running: bool) -> None:
    script = "mkdir /made; echo text > /made/file; [ $0 = stay ] && exec sleep 600"
    container = api.run("sh", "-c", script, "stay" if running else "end")
    exists = f"{API}/containers/{container}/archive?path=/made/file"
    while api.raw("HEAD", exists)[0] != 200:
        pass
    if not running:
        api.wait(container)
    for path in ("/", "/."):
        status, _, data = api.raw("GET", f"{API}/containers/{container}/archive?path={path}")
        assert status == 200
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            names = {member.name.removeprefix("./").strip("/") for member in archive}
        assert {"etc/passwd", "made/file"} <= names
        names -= {"dev/console", "dev/pts", "dev/shm"}  # places to mount on, as Docker's copy has
        assert not {name for name in names if name.startswith(("proc/", "sys/", "dev/"))}
    # The container itself keeps what the copy left out.
    assert api.inspect(container)["State"]["Running"] is running
    if running:
        assert api.raw("HEAD", exists.replace("/made/file", "/proc/1/stat"))[0] == 200


def test_a_container_is_known_by_dockers_mark(api: Api) -> None:
    container = api.run("test", "-e", "/.dockerenv")
    assert api.wait(container) == 0
    assert api.get(f"/containers/{container}/changes") == []
    exported = api.get(f"/containers/{container}/export")
    with tarfile.open(fileobj=io.BytesIO(exported)) as archive:
        assert archive.getmember(".dockerenv").size == 0
    made = api.post("/commit", container=container, repo="committed")["Id"]
    try:
        assert api.get(f"/images/{made}/json")["RootFS"]["Layers"]
        again = api.create("true", Image="committed")
        assert api.get(f"/containers/{again}/changes") == []
        api.delete(f"/containers/{again}")
    finally:
        api.delete("/images/committed")
