"""docker-py's calls on images and on containers' files, against a real engine."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest
import zstandard
from docker.errors import APIError, ImageNotFound
from tests.clients.docker_py_marks import DOCKER_PY

pytestmark = DOCKER_PY


def packed(**files: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def unpacked(chunks: Any) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "compress", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress]
)
def test_what_is_saved_loads_again_in_every_compression(
    client: docker.DockerClient, compress: Callable[[bytes], bytes]
) -> None:
    client.api.import_image_from_data(packed(a="1"), repository="py", tag="1")
    image = client.images.get("py:1")
    assert image.tag("py", "2")
    archive = b"".join(image.save(named=True))
    client.images.remove(image.id, force=True)
    with pytest.raises(ImageNotFound):
        client.images.get("py:1")
    (loaded,) = client.images.load(compress(archive))
    assert loaded.id == image.id
    assert loaded.attrs["RootFS"] == image.attrs["RootFS"]
    assert loaded.attrs["Created"] == image.attrs["Created"]
    assert loaded.history() != []
    client.images.remove(loaded.id, force=True)


def test_import_of_a_file_with_changes(client: docker.DockerClient, tmp_path: Path) -> None:
    (tmp_path / "root.tar").write_bytes(packed(a="1"))
    client.api.import_image_from_file(
        str(tmp_path / "root.tar"), repository="py", tag="3", changes=["CMD x", "ENV A=b"]
    )
    config = client.images.get("py:3").attrs["Config"]
    assert (config["Cmd"], config["Env"]) == (["/bin/sh", "-c", "x"], ["A=b"])
    assert [image.tags for image in client.images.list("py")] == [["py:3"]]
    client.images.remove("py:3")


def test_a_container_becomes_an_image_and_its_files_travel(client: docker.DockerClient) -> None:
    box = client.containers.create("busybox", ["sh", "-c", "cat /root/in"])
    assert box.put_archive("/root", packed(**{"in": "carried\n"}))
    assert box.put_archive("/root", b"")
    assert unpacked(box.get_archive("/root/in")[0]) == {"in": b"carried\n"}
    assert unpacked(box.export())["root/in"] == b"carried\n"
    assert box.diff() == [{"Path": "/root", "Kind": 0}, {"Path": "/root/in", "Kind": 1}]
    image = box.commit("py", "4", message="m", author="a", changes="ENV A=b", conf={"User": "0"})
    assert (image.attrs["Comment"], image.attrs["Author"]) == ("m", "a")
    assert image.attrs["Config"]["User"] == "0"
    assert client.containers.run("py:4", remove=True) == b"carried\n"
    holder = client.containers.create("py:4")
    with pytest.raises(APIError, match="must force") as caught:
        client.images.remove("py:4")
    assert caught.value.status_code == 409
    holder.remove()
    client.images.remove("py:4")
    for number in (1, 2):
        client.api.import_image_from_data(packed(a=str(number)), repository="py", tag="5")
    pruned = client.images.prune({"dangling": True})
    assert [item for item in pruned["ImagesDeleted"] if "Deleted" in item] != []
    assert pruned["SpaceReclaimed"] >= 1
    client.images.remove("py:5")
