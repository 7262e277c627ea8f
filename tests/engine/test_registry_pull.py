"""Pulling from a real registry: formats, platforms, progress, logins, and what goes wrong on the
way. The service runs in the test's process, on a data root of its own."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from deskd import errors
from deskd.api.status import status_of
from deskd.registry.authorization import Credentials
from deskd.registry.cancellation import Cancellation
from deskd.registry.endpoints import Endpoint
from deskd.registry.failures import Unreachable
from deskd.registry.transport import Transport, finish
from tests.http_proxy import HttpProxy
from tests.kernel.image_store import directory, entry, tar
from tests.registry_process import (
    DOCKER,
    OCI,
    PASSWORD,
    USER,
    FaultProxy,
    Pusher,
    packed,
    running_registry,
)
from tests.registry_service import Service, service
from tests.registry_service import here as here  # noqa: PLC0414
from tests.registry_service import quick_retries as quick_retries  # noqa: PLC0414
from tests.registry_service import registry as registry  # noqa: PLC0414

pytestmark = pytest.mark.root

BASE = tar(directory("etc"), entry("etc/os-release", b"ID=x\n"))
TOP = tar(entry("hello", b"hello\n"))


def big_layer(seed: int, size: int = 2_000_000) -> bytes:
    """Make a layer that does not compress."""
    return tar(entry(f"file{seed}", random.Random(seed).randbytes(size)))


# --- what is pulled -----------------------------------------------------------------------------


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("family", "compress", "suffix"),
    [(OCI, packed, "+gzip"), (OCI, zstd, "+zstd"), (OCI, bytes, ""),
     (DOCKER, packed, "")],
)  # fmt: skip
def test_each_format_gives_the_same_files(
    here: Service, registry: str, family: str, compress: Callable[[bytes], bytes], suffix: str
) -> None:
    name = f"formats/a{len(suffix)}{'o' if family == OCI else 'd'}"
    digest, image_id, _ = Pusher(registry).image(
        name, "1", [BASE, TOP], family=family, compress=compress, suffix=suffix, Cmd=["sh"]
    )
    lines = here.pull(f"{registry}/{name}:1")
    assert here.content(f"{registry}/{name}:1") == {
        "etc/os-release": b"ID=x\n",
        "hello": b"hello\n",
    }
    record = here.stores.catalog.get(f"{registry}/{name}@{digest}")
    assert record.id == image_id
    assert record.container_config.cmd == ["sh"]
    assert lines[0] == f"1 Pulling from {name}"
    assert lines[-2:] == [
        f"Digest: {digest}",
        f"Status: Downloaded newer image for {registry}/{name}:1",
    ]
    assert here.recorder.events == [("pull", f"{registry}/{name}:1", f"{registry}/{name}")]
    for layer in {line.split()[0] for line in lines[1:-2]}:
        own = [line.partition(" ")[2] for line in lines if line.startswith(layer)]
        assert own[0] == "Pulling fs layer"
        assert own[-4:] == [
            "Verifying Checksum", "Download complete", "Extracting", "Pull complete",
        ]  # fmt: skip
    again = here.pull(f"{registry}/{name}:1")
    assert again[1:] == [
        f"Digest: {digest}",
        f"Status: Image is up to date for {registry}/{name}:1",
    ]


def test_layers_that_are_here_are_not_fetched(here: Service, registry: str) -> None:
    pusher = Pusher(registry)
    pusher.image("shared/a", "1", [BASE])
    pusher.image("shared/b", "1", [BASE, TOP, BASE])
    with FaultProxy(registry) as proxy:
        here.pull(f"{proxy.address}/shared/a:1")
        before = len(proxy.requests)
        lines = here.pull(f"{proxy.address}/shared/b:1")
        fetched = [r for r in proxy.requests[before:] if "/blobs/" in r]
    assert len(fetched) == 2, "the configuration and one layer"
    assert [line for line in lines if "Already exists" in line]
    assert here.content(f"{proxy.address}/shared/b:1")["hello"] == b"hello\n"
    assert here.stores.leftovers() == []


def test_only_the_digest_of_what_is_here_is_asked_for(here: Service, registry: str) -> None:
    pusher = Pusher(registry)
    pusher.image("asked", "1", [BASE])
    with FaultProxy(registry) as proxy:
        name = f"{proxy.address}/asked:1"
        here.pull(name)
        before = len(proxy.requests)
        assert here.pull(name)[-1].startswith("Status: Image is up to date")
        again = proxy.requests[before:]
        pusher.image("asked", "1", [TOP])
        assert here.pull(name)[-1].startswith("Status: Downloaded newer image")
    assert not [r for r in again if r.startswith("GET") and "/v2/ " not in r], again
    assert here.content(name) == {"hello": b"hello\n"}


def test_platforms_and_digests_and_all_tags(here: Service, registry: str) -> None:
    platforms = ("amd64", "arm64/v8", "arm/v7", "arm/v6")
    digest, entries = Pusher(registry).index(
        "multi",
        "all",
        {name: tar(entry("platform", name.replace("/", "").encode())) for name in platforms},
    )
    name = f"{registry}/multi"
    for wanted, found in (
        ("linux/arm64", b"arm64v8"),
        ("linux/arm/v7", b"armv7"),
        ("arm", b"armv7"),
        ("linux/arm/v6", b"armv6"),
        ("linux/amd64", b"amd64"),
    ):
        lines = here.pull(f"{name}:all", platform=wanted)
        assert here.content(f"{name}:all") == {"platform": found}
        assert f"Digest: {digest}" in lines
    with pytest.raises(errors.NotFound, match="no matching manifest for linux/s390x"):
        here.pull(f"{name}:all", platform="linux/s390x")
    lines = here.pull(f"{name}@{entries[1]['digest']}")
    assert lines[0].startswith(f"{name}@sha256:")
    assert here.content(f"{name}@{entries[1]['digest']}") == {"platform": b"arm64v8"}
    lines = here.pull(f"{name}:arm64v8", platform="linux/amd64")
    assert any(line.startswith("WARNING: image with reference") for line in lines)
    lines = here.pull(name)
    tags = {"all", "amd64", "arm64v8", "armv7", "armv6"}
    assert {f"{tag} Pulling from multi" for tag in tags} <= set(lines)
    assert {n.tag for names in here.stores.catalog.all_names().values() for n in names} - {
        ""
    } == tags


def test_attestations_are_no_platform(here: Service, registry: str) -> None:
    """Builders put what they say of an image beside it, for the platform unknown/unknown."""
    pusher = Pusher(registry)
    document, _ = pusher.describe("attested", [TOP])
    size = len(json.dumps(document))
    said, _ = pusher.describe("attested", [BASE], os="unknown")
    entries = [
        {"mediaType": said["mediaType"], "digest": pusher.manifest("attested", "said", said),
         "size": len(json.dumps(said)), "platform": {"os": "unknown", "architecture": "unknown"},
         "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
        {"mediaType": document["mediaType"], "digest": pusher.manifest("attested", "a", document),
         "size": size, "platform": {"os": "linux", "architecture": "amd64"}},
    ]  # fmt: skip
    for tag, kept in (("both", entries), ("alone", entries[:1])):
        index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": kept}
        pusher.manifest("attested", tag, index)
    here.pull(f"{registry}/attested:both", platform="linux/amd64")
    assert here.content(f"{registry}/attested:both") == {"hello": b"hello\n"}
    with pytest.raises(errors.NotFound, match="no matching manifest for linux/amd64 in the man"):
        here.pull(f"{registry}/attested:alone", platform="linux/amd64")


# --- who asks -----------------------------------------------------------------------------------


def test_passwords(tmp_path: Path, here: Service) -> None:
    with running_registry(tmp_path / "registry", passwords=True) as registry:
        Pusher(registry, authorization=(USER, PASSWORD)).image("own", "1", [BASE])
        name = f"{registry}/own:1"
        with pytest.raises(errors.Unauthorized) as caught:
            here.pull(name)
        said = f'Get "http://{registry}/v2/own/manifests/1": no basic auth credentials'
        assert (str(caught.value), status_of(caught.value)) == (said, 500)
        wrong = Credentials(username=USER, password="wrong")
        with pytest.raises(errors.DeskdError, match="unauthorized: authentication required") as no:
            here.pull(name, credentials=wrong)
        assert status_of(no.value) == 500
        here.check_nothing_left()
        here.pull(name, credentials=Credentials(username=USER, password=PASSWORD))
        assert "etc/os-release" in here.content(name)


def test_certificates(tmp_path: Path) -> None:
    def ping(host: str, **settings: Any) -> int:
        transport = Transport(Endpoint("https", host, **settings), Cancellation())
        try:
            answer = transport.send("GET", transport.endpoint.base)
            finish(answer)
            return answer.status
        finally:
            transport.close()

    with running_registry(tmp_path / "registry", tls=True) as registry:
        with pytest.raises(Unreachable, match=r"failed to verify certificate.*certs\.d"):
            ping(registry)
        own = tmp_path / "certs.d" / registry
        own.mkdir(parents=True)
        (own / "ca.crt").write_bytes((tmp_path / "registry" / "cert.pem").read_bytes())
        assert ping(registry, certificates=(own,)) == 200
        assert ping(registry, verified=False) == 200
        (own / "ca.crt").write_text("nonsense")
        with pytest.raises(Unreachable, match="cannot be used"):
            ping(registry, certificates=(own,))
    refused = pytest.raises(Unreachable, match="--insecure-registry")
    with running_registry(tmp_path / "plain") as registry, refused:
        ping(registry)


def test_a_mirror_is_asked_first_and_passed_over(tmp_path: Path, registry: str) -> None:
    Pusher(registry).image("library/mirrored", "1", [BASE])
    mirrors = ("http://127.0.0.1:1", f"http://{registry}")
    with service(tmp_path / "data", registry_mirrors=mirrors) as here:
        here.pull("mirrored:1")
        assert "etc/os-release" in here.content("mirrored:1")


# --- what goes wrong ----------------------------------------------------------------------------


def test_what_is_not_there_is_told_in_dockers_words(here: Service, registry: str) -> None:
    with pytest.raises(errors.NotFound) as caught:
        here.pull(f"{registry}/nothing:1")
    assert str(caught.value) == (
        f"manifest for {registry}/nothing:1 not found: manifest unknown: manifest unknown"
    )
    with pytest.raises(errors.NotFound, match=f"repository {registry}/nothing not found"):
        here.pull(f"{registry}/nothing")
    with pytest.raises(Unreachable, match=r'"http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: '):
        here.pull("127.0.0.1:1/x")


def test_a_cut_download_goes_on_where_it_stopped(here: Service, registry: str) -> None:
    Pusher(registry).image("cut", "1", [big_layer(1), big_layer(2)])

    def rule(number: int, passed: int, data: bytes) -> bytes | None:
        return None if passed > 600_000 else data

    with FaultProxy(registry, rule) as proxy:
        lines = here.pull(f"{proxy.address}/cut:1")
    assert len(here.content(f"{proxy.address}/cut:1")["file1"]) == 2_000_000
    assert any("Retrying in" in line for line in lines)
    assert proxy.connections > 6
    positions = [m["progressDetail"]["current"] for m in here.told if m["status"] == "Downloading"]
    assert max(positions) >= 2_000_000
    assert here.stores.leftovers() == []


def test_a_download_that_never_gets_on_is_given_up(here: Service, registry: str) -> None:
    Pusher(registry).image("dead", "1", [big_layer(3)])

    def rule(number: int, passed: int, data: bytes) -> bytes | None:
        return None if passed > 100_000 or number > 2 else data

    with FaultProxy(registry, rule) as proxy, pytest.raises(errors.DeskdError):
        here.pull(f"{proxy.address}/dead:1")
    here.check_nothing_left()


def test_corrupt_bytes_are_found(here: Service, registry: str) -> None:
    Pusher(registry).image("corrupt", "1", [BASE, big_layer(4)])

    def rule(number: int, passed: int, data: bytes) -> bytes:
        return bytes([data[0] ^ 1]) + data[1:] if passed > 1_000_000 else data

    refused = pytest.raises(errors.DataLoss, match="verification failed for digest sha256:")
    with FaultProxy(registry, rule) as proxy, refused:
        here.pull(f"{proxy.address}/corrupt:1")
    here.check_nothing_left()


def test_two_pulls_at_once_fetch_a_layer_once(here: Service, registry: str) -> None:
    pusher = Pusher(registry)
    pusher.image("twice/a", "1", [big_layer(5), TOP])
    pusher.image("twice/b", "1", [TOP, big_layer(5)])
    pusher.image("twice/c", "1", [big_layer(5), BASE])

    async def both(address: str) -> None:
        names = [f"{address}/twice/{name}:1" for name in "abc"]
        await asyncio.gather(*(here.pulling(name) for name in names))

    with FaultProxy(registry) as proxy:
        asyncio.run(both(proxy.address))
        fetched = [r for r in proxy.requests if "/blobs/" in r]
    assert len(fetched) <= 8, "three configurations and three layers, one perhaps again"
    for name in "abc":
        assert len(here.content(f"{proxy.address}/twice/{name}:1")["file5"]) == 2_000_000
    assert here.stores.leftovers() == []


def test_a_pull_that_is_given_up_leaves_nothing(here: Service, registry: str) -> None:
    Pusher(registry).image("given-up", "1", [BASE, big_layer(6)])
    stalled = asyncio.Event()

    async def work(address: str) -> None:
        loop = asyncio.get_running_loop()

        def note() -> None:
            loop.call_soon_threadsafe(stalled.set)

        notes.append(note)
        task = asyncio.ensure_future(here.pulling(f"{address}/given-up:1"))
        await stalled.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await here.service.close()

    notes: list[Callable[[], None]] = []

    def rule(number: int, passed: int, data: bytes) -> bytes:
        if passed > 500_000:
            notes[0]()
            return b""  # nothing comes any more, and the connection stays
        return data

    with FaultProxy(registry, rule) as proxy:
        asyncio.run(work(proxy.address))
    here.check_nothing_left()


def test_an_impossible_platform_is_refused_before_anything(here: Service) -> None:
    with pytest.raises(errors.InvalidArgument, match="invalid platform"):
        here.pull("127.0.0.1:1/x", platform="a/b/c/d")
    with pytest.raises(errors.InvalidArgument, match="unknown operating system or architecture"):
        here.pull("127.0.0.1:1/x", platform="nope")
    with pytest.raises(errors.InvalidArgument, match="not supported"):
        here.pull("127.0.0.1:1/x", platform="windows/amd64")


@pytest.mark.parametrize("tls", [False, True])
def test_registries_beyond_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    """The registry's name is known to nobody but the proxy."""
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with (
        running_registry(tmp_path / "plain") as plain,
        running_registry(tmp_path / "tls", tls=True) as secure,
        service(tmp_path / "data", insecure_registries=("registry.invalid:5000",)) as here,
    ):
        Pusher(plain).image("proxied", "1", [BASE])
        with HttpProxy(secure if tls else plain) as proxy:
            monkeypatch.setenv("http_proxy", f"http://ann:s3cret@{proxy.address}")
            monkeypatch.setenv("https_proxy", f"http://ann:s3cret@{proxy.address}")
            name = "registry.invalid:5000/proxied:1"
            if tls:
                with pytest.raises(errors.NotFound, match="manifest unknown"):
                    here.pull(name)
            else:
                here.pull(name)
                assert "etc/os-release" in here.content(name)
        assert set(proxy.hosts) == {"registry.invalid:5000"}
        assert proxy.credentials == {"Basic YW5uOnMzY3JldA=="}
