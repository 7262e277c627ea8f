"""Pushing to a real registry, and what registries are asked besides."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import zstandard

from deskd import errors
from deskd.domain.filters import Filters
from deskd.domain.reference import parse
from deskd.images import importing, removal
from deskd.images.pack import IterReader
from deskd.images.streams import ByteReader
from deskd.registry.authorization import Credentials
from tests.engine.liar import Reply, Server
from tests.engine.resumable_uploads import ResumableUploads
from tests.engine.whole_uploads import WholeUploads
from tests.kernel.image_store import directory, entry, tar
from tests.registry_process import (
    DOCKER,
    OCI,
    PASSWORD,
    USER,
    FaultProxy,
    Pusher,
    running_registry,
)
from tests.registry_service import Service, service
from tests.registry_service import here as here  # noqa: PLC0414
from tests.registry_service import quick_retries as quick_retries  # noqa: PLC0414
from tests.registry_service import registry as registry  # noqa: PLC0414

pytestmark = pytest.mark.root

BASE = tar(directory("etc"), entry("etc/os-release", b"ID=x\n"))
TOP = tar(entry("hello", b"hello\n"))
BIG = tar(entry("big", random.Random(9).randbytes(3_000_000)))
ACCEPT = f"{DOCKER}.distribution.manifest.v2+json, {OCI}.manifest.v1+json"


def reader(data: bytes) -> ByteReader:
    return IterReader(iter([data]))


def import_(here: Service, name: str, data: bytes = BASE) -> str:
    from deskd.domain.reference import from_repository

    wanted = importing.ImportRequest(reference=from_repository(name))
    return importing.import_image(here.stores.catalog, reader(data), wanted).id


def manifest_of(registry: str, repository: str, tag: str) -> tuple[dict[str, Any], bytes]:
    status, _, raw = Pusher(registry).request(
        "GET", f"/v2/{repository}/manifests/{tag}", Accept=ACCEPT
    )
    assert status == 200, raw
    return json.loads(raw), raw


def test_a_pushed_image_comes_back_the_same(here: Service, registry: str, tmp_path: Path) -> None:
    image_id = import_(here, f"{registry}/team/mine:1")
    lines = here.push(f"{registry}/team/mine:1")
    document, raw = manifest_of(registry, "team/mine", "1")
    assert document["mediaType"] == f"{DOCKER}.distribution.manifest.v2+json"
    digest = here.stores.catalog.names(image_id)[-1].digest
    layer = here.stores.layers.all()[0].diff_id.removeprefix("sha256:")[:12]
    assert lines[0] == f"The push refers to repository [{registry}/team/mine]"
    assert lines[1] == f"{layer} Preparing"
    assert f"{layer} Pushed" in lines
    assert lines[-2] == f"1: digest: {digest} size: {len(raw)}"
    assert here.told[-1]["aux"] == {"Tag": "1", "Digest": digest, "Size": len(raw)}
    assert here.recorder.events[-1][0] == "push"
    with service(tmp_path / "other") as other:
        other.pull(f"{registry}/team/mine:1")
        assert other.stores.catalog.get(f"{registry}/team/mine:1").id == image_id
        assert other.content(f"{registry}/team/mine:1") == {"etc/os-release": b"ID=x\n"}


def test_skopeo_understands_what_was_pushed(here: Service, registry: str, tmp_path: Path) -> None:
    image_id = import_(here, f"{registry}/for-skopeo:1", BIG)
    here.push(f"{registry}/for-skopeo:1")
    target = tmp_path / "copied"
    done = subprocess.run(
        ["skopeo", "copy", "--src-tls-verify=false", f"docker://{registry}/for-skopeo:1",
         f"oci:{target}:x"],
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (target / "blobs" / "sha256").iterdir()}
    assert len(names) == 3, image_id


def test_what_skopeo_pushed_is_pulled(here: Service, registry: str, tmp_path: Path) -> None:
    import_(here, f"{registry}/skopeo-source:1", BIG)
    here.push(f"{registry}/skopeo-source:1")
    target = f"{registry}/by-skopeo:1"
    done = subprocess.run(
        ["skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--format=oci",
         f"docker://{registry}/skopeo-source:1", f"docker://{target}"],
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document, _ = manifest_of(registry, "by-skopeo", "1")
    assert document["mediaType"] == f"{OCI}.manifest.v1+json"
    with service(tmp_path / "elsewhere") as elsewhere:
        elsewhere.pull(target)
        assert elsewhere.content(target) == here.content(f"{registry}/skopeo-source:1")


def test_nothing_is_sent_twice_and_layers_are_mounted(here: Service, registry: str) -> None:
    with FaultProxy(registry) as proxy:
        name = f"{proxy.address}/first:1"
        image_id = import_(here, name, BIG)
        here.push(name)
        before = len(proxy.requests)
        lines = here.push(name)
        again = proxy.requests[before:]
        here.stores.catalog.tag(parse(f"{proxy.address}/second:2"), image_id)
        before = len(proxy.requests)
        mounted = here.push(f"{proxy.address}/second:2")
        later = proxy.requests[before:]
    assert any("Layer already exists" in line for line in lines)
    assert not [r for r in again if r.startswith(("POST", "PATCH"))]
    assert any("Mounted from first" in line for line in mounted)
    assert not [r for r in later if r.startswith("PATCH")]
    assert manifest_of(registry, "first", "1")[1] == manifest_of(registry, "second", "2")[1]


@pytest.mark.parametrize("family", [OCI, DOCKER])
def test_a_pulled_image_keeps_its_manifest(here: Service, registry: str, family: str) -> None:
    kind = "oci" if family == OCI else "docker"
    digest, image_id, _ = Pusher(registry).image(f"from/{kind}", "1", [BASE, TOP], family=family)
    here.pull(f"{registry}/from/{kind}:1")
    here.stores.catalog.tag(parse(f"{registry}/to/{kind}:2"), image_id)
    lines = here.push(f"{registry}/to/{kind}:2")
    assert any(f"2: digest: {digest}" in line for line in lines)
    assert manifest_of(registry, f"to/{kind}", "2")[0]["mediaType"].startswith(family)


def test_zstd_layers_go_to_another_registry(here: Service, registry: str, tmp_path: Path) -> None:
    def zstd(data: bytes) -> bytes:
        return zstandard.ZstdCompressor().compress(data)

    _, image_id, _ = Pusher(registry).image("zstd", "1", [BASE], compress=zstd, suffix="+zstd")
    here.pull(f"{registry}/zstd:1")
    with running_registry(tmp_path / "registry") as other:
        here.stores.catalog.tag(parse(f"{other}/zstd:1"), image_id)
        here.push(f"{other}/zstd:1")
        document, _ = manifest_of(other, "zstd", "1")
        assert document["layers"][0]["mediaType"] == f"{OCI}.layer.v1.tar+gzip"
        with service(tmp_path / "data2") as third:
            third.pull(f"{other}/zstd:1")
            assert third.stores.catalog.get(f"{other}/zstd:1").id == image_id


def test_all_tags_and_names_that_are_not_there(here: Service, registry: str) -> None:
    image_id = import_(here, f"{registry}/many:1")
    here.stores.catalog.tag(parse(f"{registry}/many:2"), image_id)
    here.push(f"{registry}/many")
    status, _, raw = Pusher(registry).request("GET", "/v2/many/tags/list")
    assert (status, sorted(json.loads(raw)["tags"])) == (200, ["1", "2"])
    with pytest.raises(errors.NotFound, match=f"tag does not exist: {registry}/many:3"):
        here.push(f"{registry}/many:3")
    with pytest.raises(errors.NotFound, match="does not exist locally with the tag"):
        here.push(f"{registry}/nothing:1")


def test_a_platform_that_the_image_does_not_have(here: Service, registry: str) -> None:
    name = f"{registry}/platform:1"
    Pusher(registry).image("platform", "1", [BASE], platform={"architecture": "arm64"})
    here.pull(name, platform="linux/arm64")
    here.push(name, platform='{"os": "linux", "architecture": "arm64"}')
    with pytest.raises(errors.NotFound, match="does not match the specified platform"):
        here.push(name, platform='{"os": "linux", "architecture": "amd64"}')
    for bad in ("{", '{"os": "linux"}', "[]"):
        with pytest.raises(errors.InvalidArgument, match="invalid platform"):
            here.push(name, platform=bad)


def test_passwords(here: Service, tmp_path: Path) -> None:
    with running_registry(tmp_path / "registry", passwords=True) as registry:
        import_(here, f"{registry}/own:1")
        with pytest.raises(errors.Unauthorized, match="no basic auth credentials"):
            here.push(f"{registry}/own:1")
        with pytest.raises(errors.DeskdError, match="authentication required"):
            here.push(f"{registry}/own:1", Credentials(username=USER, password="wrong"))
        here.push(f"{registry}/own:1", Credentials(username=USER, password=PASSWORD))


def test_an_upload_that_is_cut_is_sent_again(here: Service, registry: str) -> None:
    """The connection ends before the registry's answer to the whole stream has come."""
    cuts = 0

    def rule(number: int, passed: int, data: bytes) -> bytes | None:
        nonlocal cuts
        if b"Range: 0-" in data and b"Range: 0-0\r" not in data and cuts < 2:
            cuts += 1
            return None
        return data

    with FaultProxy(registry, rule) as proxy:
        import_(here, f"{proxy.address}/cut-push:1", BIG)
        lines = here.push(f"{proxy.address}/cut-push:1")
    assert cuts == 2
    assert sum("Retrying in" in line for line in lines) == 2
    document, _ = manifest_of(registry, "cut-push", "1")
    assert document["layers"][0]["size"] > 2_900_000


def test_an_upload_that_broke_off_goes_on_where_the_registry_can(
    here: Service, registry: str, tmp_path: Path
) -> None:
    with ResumableUploads(registry, cuts=3, cut_bytes=700_000) as front:
        image_id = import_(here, f"{front.address}/resumed:1", BIG)
        lines = here.push(f"{front.address}/resumed:1")
    document, _ = manifest_of(registry, "resumed", "1")
    size = document["layers"][0]["size"]
    assert size > 2_900_000
    layer = front.pieces[:4]
    assert sum(piece.size for piece in layer) == size, "each byte was sent once"
    assert all(piece.size < size / 2 for piece in layer[:3])
    starts = [piece.place.partition("-")[0] for piece in layer]
    assert starts == ["", *(str(sum(p.size for p in layer[:n])) for n in (1, 2, 3))]
    assert front.asked == 3
    assert sum("Retrying in" in line for line in lines) == 2, "the first question needs no pause"
    with service(tmp_path / "other") as other:
        other.pull(f"{registry}/resumed:1")
        assert other.stores.catalog.get(f"{registry}/resumed:1").id == image_id


def test_an_image_that_is_removed_while_it_is_pushed_is_pushed_whole(
    here: Service, registry: str, tmp_path: Path
) -> None:
    removed: list[int] = []

    def rule(number: int, passed: int, data: bytes) -> bytes:
        if "PATCH" in "".join(proxy.requests[-1:]) and not removed:
            removed.append(1)
            removal.remove(here.stores.catalog, list, name, force=True, prune_parents=True)
        return data

    with FaultProxy(registry, rule) as proxy:
        name = f"{proxy.address}/removed:1"
        image_id = import_(here, name, BIG)
        assert any(" digest: sha256:" in line for line in here.push(name))
    assert removed
    assert here.stores.layers.all() == [], "nobody needs them any more"
    assert here.stores.leftovers() == []
    with service(tmp_path / "other") as other:
        other.pull(f"{registry}/removed:1")
        assert other.stores.catalog.get(f"{registry}/removed:1").id == image_id


def test_halves_of_an_upload_that_do_not_fit_are_sent_anew(here: Service, registry: str) -> None:
    with ResumableUploads(registry, cuts=1, cut_bytes=700_000, damaged=True) as front:
        import_(here, f"{front.address}/halves:1", BIG)
        here.push(f"{front.address}/halves:1")
    places = [piece.place.partition("-")[0] for piece in front.pieces]
    assert places[:3] == ["", str(front.pieces[0].size), ""]
    document, _ = manifest_of(registry, "halves", "1")
    assert document["layers"][0]["size"] == front.pieces[2].size


@pytest.mark.parametrize("status", [404, 405, 416, 501])
def test_a_registry_without_streams_gets_whole_blobs(
    here: Service, registry: str, tmp_path: Path, status: int
) -> None:
    repository = f"whole-{status}"
    with WholeUploads(registry, status, busy=1) as proxy:
        image_id = import_(here, f"{proxy.address}/{repository}:1", BIG)
        lines = here.push(f"{proxy.address}/{repository}:1")
        blobs = [upload for upload in proxy.uploads if "/blobs/" in upload.path]
    document, _ = manifest_of(registry, repository, "1")
    size = document["layers"][0]["size"]
    assert size > 2_900_000
    # The layer as a stream, as a whole, once more as the registry was busy; the configuration.
    assert [upload.method for upload in blobs] == ["PATCH", "PUT", "PUT", "PUT"]
    assert [upload.length for upload in blobs[:3]] == ["", str(size), str(size)]
    assert sum("Retrying in" in line for line in lines) == 1
    assert sum(line.endswith(" Pushed") for line in lines) == 1
    with service(tmp_path / "other") as other:
        other.pull(f"{registry}/{repository}:1")
        assert other.stores.catalog.get(f"{registry}/{repository}:1").id == image_id


def test_a_blob_that_the_registry_lost_is_sent_anew(here: Service, registry: str) -> None:
    name = f"{registry}/lost:1"
    import_(here, name, TOP)
    here.push(name)
    document, _ = manifest_of(registry, "lost", "1")
    blob = document["layers"][0]["digest"]
    status, _, _ = Pusher(registry).request("DELETE", f"/v2/lost/blobs/{blob}")
    assert status == 202
    lines = here.push(name)
    assert any(line.endswith(" Pushed") for line in lines)
    assert Pusher(registry).request("HEAD", f"/v2/lost/blobs/{blob}")[0] == 200


def test_a_layer_that_was_changed_on_disk_is_not_pushed(here: Service, registry: str) -> None:
    import_(here, f"{registry}/changed:1", tar(entry("file", b"before")))
    (layer,) = here.stores.layers.all()
    Path(here.stores.layers.directory(layer), "file").write_bytes(b"behind")
    with pytest.raises(errors.DataLoss, match="was changed on disk"):
        here.push(f"{registry}/changed:1")
    assert Pusher(registry).request("GET", "/v2/changed/manifests/1")[0] == 404


# --- other questions ----------------------------------------------------------------------------


def test_distribution_inspect(here: Service, registry: str) -> None:
    digest, _, size = Pusher(registry).image(
        "looked-at", "1", [BASE], platform={"architecture": "arm64", "variant": "v8"}
    )

    async def work() -> None:
        found = await here.service.inspect(f"{registry}/looked-at:1", Credentials())
        assert found["Descriptor"] == {
            "mediaType": f"{OCI}.manifest.v1+json", "digest": digest, "size": size,
        }  # fmt: skip
        (platform,) = found["Platforms"]
        assert (platform.os, platform.architecture, platform.variant) == ("linux", "arm64", "v8")
        with pytest.raises(errors.NotFound, match="manifest unknown"):
            await here.service.inspect(f"{registry}/looked-at:2", Credentials())

    asyncio.run(work())


def test_searches(here: Service, registry: str) -> None:
    results = {
        "results": [
            {"name": "a/x", "description": "one", "star_count": 7, "is_official": True},
            {"name": "b/x", "description": None, "star_count": 1, "is_official": False},
        ]
    }

    def answer(path: str) -> Reply:
        if path.startswith("/v1/search?q=x&n="):
            return 200, {}, json.dumps(results).encode()
        return 404, {}, b""

    def search(term: str, limit: int = 25, **filters: Any) -> list[str]:
        found = asyncio.run(
            here.service.search(term, Credentials(), limit=limit, filters=Filters(filters))
        )
        return [item["name"] for item in found]

    with Server(answer) as server:
        assert search(f"{server.address}/x") == ["a/x", "b/x"]
        assert search(f"{server.address}/x", stars=["2"]) == ["a/x"]
        assert search(f"{server.address}/x", limit=25, **{"is-official": ["false"]}) == ["b/x"]
        with pytest.raises(errors.InvalidArgument, match="outside the range"):
            search(f"{server.address}/x", limit=101)
        with pytest.raises(errors.InvalidArgument, match="invalid filter"):
            search(f"{server.address}/x", colour=["red"])
    with pytest.raises(errors.Unsupported, match="does not answer searches"):
        search(f"{registry}/x")


def test_gzip_of_other_makers_is_read(here: Service, registry: str) -> None:
    """Several members in one stream, as parallel compressors write them."""

    def members(data: bytes) -> bytes:
        return b"".join(
            gzip.compress(data[start : start + 1000]) for start in range(0, len(data), 1000)
        )

    Pusher(registry).image("members", "1", [BASE], compress=members)
    here.pull(f"{registry}/members:1")
    assert here.content(f"{registry}/members:1") == {"etc/os-release": b"ID=x\n"}
