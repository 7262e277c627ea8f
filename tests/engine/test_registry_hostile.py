"""Registries that lie, loop, hang and misuse what they are told: nothing of it gets in or out."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import lzma
import tarfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from deskd import errors
from deskd.registry import transport
from deskd.registry.authorization import Credentials
from tests.engine.liar import Reply, Server
from tests.kernel.image_store import entry, hard_link, symlink, tar
from tests.registry_process import OCI, digest, packed
from tests.registry_service import Service
from tests.registry_service import here as here  # noqa: PLC0414
from tests.registry_service import quick_retries as quick_retries  # noqa: PLC0414

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "READ_TIMEOUT_S", 1.5)


class Image:
    """An image as a registry gives it out; a test changes what it likes."""

    def __init__(self, *layers: bytes, compress: Callable[[bytes], bytes] = packed) -> None:
        self.config = json.dumps(
            {"architecture": "amd64", "os": "linux",
             "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]}}
        ).encode()  # fmt: skip
        self.blobs = {digest(self.config): self.config}
        described = []
        for layer in layers:
            blob = compress(layer)
            self.blobs[digest(blob)] = blob
            described.append(
                {"mediaType": f"{OCI}.layer.v1.tar+gzip", "digest": digest(blob), "size": len(blob)}
            )
        self.manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": {"mediaType": f"{OCI}.config.v1+json", "digest": digest(self.config),
                       "size": len(self.config)},
            "layers": described,
        }  # fmt: skip

    def __call__(self, path: str) -> Reply | None:
        if path == "ping":
            return None
        if "/manifests/" in path:
            raw = json.dumps(self.manifest).encode()
            return 200, {"Content-Type": self.manifest.get("mediaType", "")}, raw
        blob = self.blobs.get(path.rpartition("/")[2])
        return (200, {}, blob) if blob is not None else (404, {}, b"{}")


def refused(here: Service, answer: Callable[[str], Reply | None], text: str) -> errors.DeskdError:
    with Server(answer) as server, pytest.raises(errors.DeskdError, match=text) as caught:
        here.pull(f"{server.address}/x:1")
    here.check_nothing_left()
    return caught.value


GOOD = tar(entry("a", b"a"))


def test_the_liar_can_be_honest(here: Service) -> None:
    with Server(Image(GOOD)) as server:
        here.pull(f"{server.address}/x:1")
        assert here.content(f"{server.address}/x:1") == {"a": b"a"}


# --- manifests ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "is not valid"),
        (b"\xff\xfe", "is not valid"),
        (b"[1,2]", "is not valid"),
        (b'{"config": 5}', "is not valid"),
        (b"{}", "describes neither an image nor an index"),
        (b"[" * 100_000, "is not valid"),
        (b'{"a":' * 100_000, "is not valid"),
        (b'{"a":"' + b"x" * (5 << 20) + b'"}', "larger than 4194304 bytes"),
        (b'{"config": {"digest": "../../etc/passwd"}}', "is not a digest"),
        (b'{"config": {"digest": "sha256:' + b"A" * 64 + b'"}}', "written in lowercase"),
        (b'{"config": {"digest": "sha256:' + b"a" * 64 + b'", "size": -5}}', "is negative"),
        (b'{"config": {"digest": "sha256:' + b"a" * 64 + b'", "size": 999999999}}', "refused"),
        (b'{"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": "x"}}',
         "is not a container image"),
    ],
)  # fmt: skip
def test_bad_manifests(here: Service, body: bytes, text: str) -> None:
    def answer(path: str) -> Reply | None:
        kind = {"Content-Type": f"{OCI}.manifest.v1+json"}
        return (200, kind, body) if "/manifests/" in path else None

    refused(here, answer, text)


@pytest.mark.parametrize(
    "config",
    [b'{"a":' * 100_000, b"[]", b"\xff", b'{"rootfs": null}', b'{"config": {"Env": 5}}'],
)
def test_bad_configurations(here: Service, config: bytes) -> None:
    image = Image(GOOD)
    image.blobs[digest(config)] = config
    image.manifest["config"] |= {"digest": digest(config), "size": len(config)}
    refused(here, image, "is not valid")


def test_refusals_that_cannot_be_read(here: Service) -> None:
    def answer(path: str) -> Reply | None:
        return None if path == "ping" else (404, {}, b'{"a":' * 10_000)

    refused(here, answer, "manifest unknown")


def test_indexes_without_end(here: Service) -> None:
    kind = f"{OCI}.index.v1+json"
    raws = {"1": b""}
    inner = b'{"manifests": []}'
    for _ in range(5):
        entry_ = {"digest": digest(inner), "size": len(inner)}
        raws[digest(inner)] = inner
        inner = json.dumps({"mediaType": kind, "manifests": [entry_]}).encode()
    raws["1"] = inner

    def answer(path: str) -> Reply | None:
        raw = raws.get(path.rpartition("/")[2])
        return None if raw is None else (200, {"Content-Type": kind}, raw)

    refused(here, answer, "an index of indexes without end")
    first = json.loads(inner)["manifests"][0]["digest"]
    raws[first] = b"{}"
    refused(here, answer, "manifest verification failed")


def test_old_schemas_and_unknown_layers(here: Service) -> None:
    def old(path: str) -> Reply | None:
        kind = {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}
        return (200, kind, b'{"schemaVersion": 1}') if "/manifests/" in path else None

    refused(here, old, "schema 1 is not supported")
    image = Image(GOOD)
    image.manifest["layers"][0]["mediaType"] = "application/octet-stream"
    refused(here, image, "unknown type")
    image = Image(GOOD)
    image.manifest["layers"] *= 200
    refused(here, image, "at most 128 layers")
    image = Image(GOOD)
    image.manifest["layers"] *= 2
    refused(here, image, "2 layers in its manifest and 1 in its configuration")


# --- blobs --------------------------------------------------------------------------------------


def test_blobs_that_are_not_what_they_say(here: Service) -> None:
    image = Image(GOOD)
    blob = image.manifest["layers"][0]["digest"]
    image.blobs[blob] = packed(tar(entry("b", b"b")))
    image.manifest["layers"][0]["size"] = len(image.blobs[blob])
    refused(here, image, "filesystem layer verification failed")
    image = Image(GOOD)
    image.blobs[digest(image.config)] = image.config.replace(b"amd64", b"arm64")
    refused(here, image, "verification failed")
    image = Image(GOOD)
    image.blobs[blob] = image.blobs[blob] + bytes(100_000)
    refused(here, image, "is longer than")
    image = Image(GOOD)
    other = Image(tar(entry("c", b"c")))
    image.manifest["layers"] = other.manifest["layers"]
    image.blobs |= other.blobs
    refused(here, image, "which the image's configuration says")


@pytest.mark.parametrize(
    "layer",
    [
        tar(entry("../../outside", b"x")),
        tar(entry("x/../../../outside", b"x")),
        tar(hard_link("x", "../../outside")),
        tar(entry("null", kind=tarfile.CHRTYPE, device=(1, 3)), entry("null/x", b"x")),
        b"no archive at all",
        tar(entry("a", b"a"))[:700],
    ],
)
def test_layers_that_cannot_be_unpacked(here: Service, layer: bytes) -> None:
    refused(here, Image(layer), "cannot be unpacked")


def test_links_in_layers_lead_nowhere(here: Service, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    layer = tar(symlink("way", str(outside)), entry("way/file", b"x"))
    with Server(Image(layer)) as server, contextlib.suppress(errors.InvalidArgument):
        here.pull(f"{server.address}/x:1")
    assert list(outside.iterdir()) == []
    assert here.stores.leftovers() == []


def test_devices_and_absolute_names_stay_in_the_layer(here: Service, tmp_path: Path) -> None:
    """Neither is a layer's device written to, nor does a name count from the machine's root."""
    outside = tmp_path / "outside"
    layer = tar(
        entry(str(outside), b"x"),
        entry("null", kind=tarfile.CHRTYPE, device=(1, 3)),
        entry("null", b"a file"),
    )
    with Server(Image(layer)) as server:
        here.pull(f"{server.address}/x:1")
        found = here.content(f"{server.address}/x:1")
    assert not outside.exists()
    assert found[str(outside).lstrip("/")] == b"x"
    assert found["null"] == b"a file"


def test_a_truncated_gzip_stream(here: Service) -> None:
    refused(here, Image(GOOD, compress=lambda data: packed(data)[:-6]), "cannot be unpacked")


def test_a_manifest_cannot_give_known_layers_other_blobs(here: Service) -> None:
    """Else a later push would name the liar's blob as the content of a layer."""
    image = Image(GOOD)
    with Server(image) as server:
        here.pull(f"{server.address}/x:1")
        true = image.manifest["layers"][0]["digest"]
        false = digest(b"something else")
        image.manifest["layers"][0]["digest"] = false
        here.pull(f"{server.address}/x:2")
        assert [blob.digest for blob in here.stores.catalog.blobs(digest(GOOD))] == [true]
        other = Image(GOOD, tar(entry("b", b"b")))
        other.manifest["layers"][0]["digest"] = false
        image.manifest, image.blobs = other.manifest, image.blobs | other.blobs
        here.pull(f"{server.address}/x:3")
        assert [blob.digest for blob in here.stores.catalog.blobs(digest(GOOD))] == [true]


# --- redirects and credentials ------------------------------------------------------------------


def test_redirect_loops_end(here: Service) -> None:
    def answer(path: str) -> Reply | None:
        return None if path == "ping" else (307, {"Location": path + "x"}, b"")

    refused(here, answer, "redirects in a circle")


def test_redirects_to_no_address(here: Service) -> None:
    for target in ("file:///etc/passwd", "ftp://x/y", "https:///x"):

        def answer(path: str, target: str = target) -> Reply | None:
            return None if path == "ping" else (302, {"Location": target}, b"")

        refused(here, answer, "which is no address")


def test_credentials_do_not_follow_to_another_host(here: Service) -> None:
    image = Image(GOOD)
    with Server(image) as other:
        challenge = {"WWW-Authenticate": 'Basic realm="here"'}
        wanted = f"Basic {base64.b64encode(b'ann:s3cret').decode()}"
        server: Server

        def answer(path: str) -> Reply | None:
            if server.seen[-1][1] != wanted:
                return 401, challenge, b"{}"
            if "/blobs/" in path:
                return 307, {"Location": f"http://{other.address}{path}"}, b""
            return image(path)

        server = Server(answer)
        with server:
            credentials = Credentials(username="ann", password="s3cret")
            here.pull(f"{server.address}/x:1", credentials=credentials)
            assert here.content(f"{server.address}/x:1") == {"a": b"a"}
    assert other.seen
    assert all(authorization == "" for _, authorization in other.seen)


def test_an_endless_401(here: Service) -> None:
    calls: list[str] = []

    def answer(path: str) -> Reply | None:
        calls.append(path)
        return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b"{}"

    with Server(answer) as server, pytest.raises(errors.DeskdError, match="unauthorized"):
        here.pull(f"{server.address}/x:1", credentials=Credentials(username="a", password="b"))
    assert len(calls) < 12


@pytest.mark.parametrize(
    "realm", ["", "file:///etc/passwd", "http://127.0.0.1:1/token", "nonsense"]
)
def test_bad_token_services(here: Service, realm: str) -> None:
    def answer(path: str) -> Reply | None:
        return 401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}, b"{}"

    refused(here, answer, "no address|connect: ")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"token": "a\\r\\nX-Evil: 1"}', "impossible token"),
        (b'{"a":' * 10_000, "without a token"),
        (b"[]", "without a token"),
    ],
)
def test_a_token_service_that_gives_no_token(here: Service, body: bytes, text: str) -> None:
    server: Server

    def answer(path: str) -> Reply | None:
        if path.startswith("/token"):
            return 200, {}, body
        realm = f"http://{server.address}/token"
        return 401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}, b"{}"

    server = Server(answer)
    with server, pytest.raises(errors.DeskdError, match=text):
        here.pull(f"{server.address}/x:1")


def test_tokens_by_scope(here: Service) -> None:
    image = Image(GOOD)
    server: Server
    asked: list[str] = []

    def answer(path: str) -> Reply | None:
        if path.startswith("/token"):
            asked.append(path)
            return 200, {}, b'{"access_token": "t0ken", "expires_in": 60}'
        if server.seen[-1][1] != "Bearer t0ken":
            realm = f"http://{server.address}/token"
            return 401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}, b"{}"
        return image(path)

    server = Server(answer)
    with server:
        here.pull(f"{server.address}/team/x:1")
    assert asked == ["/token?service=s&scope=repository%3Ateam%2Fx%3Apull"]


def test_tokens_that_expire_in_the_middle(here: Service) -> None:
    """The token of the manifest is good for no blob: the pull fetches a new one and goes on."""
    image = Image(GOOD, tar(entry("b", b"b")), tar(entry("c", b"c")))
    server: Server
    given: list[str] = []
    refused: list[str] = []

    def answer(path: str) -> Reply | None:
        if path.startswith("/token"):
            given.append(f"t{len(given)}")
            return 200, {}, json.dumps({"token": given[-1], "expires_in": 60}).encode()
        token = server.seen[-1][1].removeprefix("Bearer ")
        if token not in given or ("/blobs/" in path and token == given[0]):
            refused.append(path)
            realm = f"http://{server.address}/token"
            return 401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}, b"{}"
        return image(path)

    server = Server(answer)
    with server:
        here.pull(f"{server.address}/x:1")
        assert here.content(f"{server.address}/x:1") == {"a": b"a", "b": b"b", "c": b"c"}
    assert given == ["t0", "t1"]
    assert any("/blobs/" in path for path in refused)


def test_urls_of_layers_are_not_followed(here: Service) -> None:
    """A manifest may name other places for a layer; only the registry's own is asked."""
    image = Image(GOOD)
    with Server(lambda _path: (200, {}, b"elsewhere")) as elsewhere, Server(image) as server:
        layer = image.manifest["layers"][0]
        layer["urls"] = [f"http://{elsewhere.address}/layer"]
        layer["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        here.pull(f"{server.address}/x:1")
        assert here.content(f"{server.address}/x:1") == {"a": b"a"}
        assert elsewhere.seen == []


def test_three_layers_are_on_their_way_at_once(here: Service) -> None:
    """The registry gives no layer before three were asked for; the others wait meanwhile."""
    image = Image(*(tar(entry(str(number), b"x")) for number in range(6)))
    layers = {layer["digest"] for layer in image.manifest["layers"]}
    together = threading.Barrier(3, timeout=60)

    def answer(path: str) -> Reply | None:
        if path.rpartition("/")[2] in layers:
            together.wait()
        return image(path)

    with Server(answer) as server:
        lines = here.pull(f"{server.address}/x:1")
        assert here.content(f"{server.address}/x:1") == {str(n): b"x" for n in range(6)}
    ends = [line.partition(" ")[2] for line in lines]
    counted = [ends.count(end) for end in ("Pulling fs layer", "Waiting", "Pull complete")]
    assert counted == [6, 3, 6]


# --- what passes by itself ----------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_registry_is_asked_again(here: Service, status: int) -> None:
    image = Image(GOOD)
    failures = {"/v2/x/manifests/1": 2, "blob": 2}

    def answer(path: str) -> Reply | None:
        key = "blob" if "/blobs/" in path else path
        if failures.get(key, 0):
            failures[key] -= 1
            return status, {"Retry-After": "0"}, b"<html>busy</html>"
        return image(path)

    with Server(answer) as server:
        here.pull(f"{server.address}/x:1")
        assert here.content(f"{server.address}/x:1") == {"a": b"a"}


def test_a_registry_that_stays_broken(here: Service) -> None:
    def answer(path: str) -> Reply | None:
        return None if path == "ping" else (500, {}, b"<html>out of order</html>")

    refused(here, answer, "received unexpected HTTP status: 500")


def test_a_registry_that_hangs(here: Service) -> None:
    release = threading.Event()

    def answer(path: str) -> Reply | None:
        if "/blobs/" in path:
            release.wait(60)
        return Image(GOOD)(path)

    try:
        with Server(answer) as server:
            with pytest.raises(errors.DeskdError, match="does not answer in time"):
                here.pull(f"{server.address}/x:1")
            release.set()
        here.check_nothing_left()
    finally:
        release.set()


def highest_kib() -> int:
    """Return the most memory that this process had since ``forget_highest``."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def forget_highest() -> None:
    Path("/proc/self/clear_refs").write_text("5")


BOMB_BYTES = 256 << 20


def bomb(compressor: Any) -> tuple[bytes, str]:
    """Return a compressed layer with one file of zeros, and the layer's digest."""
    header = tar(entry("zeros", bytes(512)))[:512]
    member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    member.size = BOMB_BYTES
    hashed = hashlib.sha256()
    packed_parts = []
    block = bytes(1 << 20)
    for part in (member.tobuf(), *(block for _ in range(BOMB_BYTES >> 20)), bytes(1024)):
        hashed.update(part)
        packed_parts.append(compressor.compress(part))
    return b"".join([*packed_parts, compressor.flush()]), f"sha256:{hashed.hexdigest()}"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb_fills_no_memory(here: Service, compression: str) -> None:
    """A layer of zeros, a thousand times its size unpacked, passes in pieces."""
    is_gzip = compression == "gzip"
    blob, diff_id = bomb(
        zlib.compressobj(6, wbits=31) if is_gzip else zstandard.ZstdCompressor().compressobj()
    )
    assert len(blob) * 900 < BOMB_BYTES
    image = Image(compress=bytes)
    image.config = image.config.replace(b'"diff_ids": []', f'"diff_ids": ["{diff_id}"]'.encode())
    image.blobs = {digest(image.config): image.config, digest(blob): blob}
    image.manifest["config"] |= {"digest": digest(image.config), "size": len(image.config)}
    image.manifest["layers"] = [
        {
            "mediaType": f"{OCI}.layer.v1.tar+{compression}",
            "digest": digest(blob),
            "size": len(blob),
        }
    ]
    with Server(image) as server:
        forget_highest()
        before_kib = highest_kib()
        here.pull(f"{server.address}/x:1")
        assert highest_kib() - before_kib < 50 * 1024
    assert here.stores.layers.all()[0].diff_id == diff_id


def zstd_with_a_window_of_a_gigabyte(data: bytes) -> bytes:
    """Return one frame that holds the data as it is, for which a reader shall keep so much."""
    window_exponent = 30 - 10
    last_raw_block = (len(data) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\0" + bytes([window_exponent << 3]) + last_raw_block + data


def xz_with_a_dictionary_of_four_gigabytes(data: bytes) -> bytes:
    raw = bytearray(lzma.compress(data))
    start = 12  # the block's header: size, flags, filter 0x21, one byte of properties, checksum
    end = start + (raw[start] + 1) * 4
    assert raw[start + 2 : start + 4] == b"\x21\x01"
    raw[start + 4] = 40
    raw[end - 4 : end] = zlib.crc32(raw[start : end - 4]).to_bytes(4, "little")
    return bytes(raw)


@pytest.mark.parametrize(
    "compress", [zstd_with_a_window_of_a_gigabyte, xz_with_a_dictionary_of_four_gigabytes]
)
def test_a_layer_that_asks_for_much_memory(
    here: Service, compress: Callable[[bytes], bytes]
) -> None:
    refused(here, Image(GOOD, compress=compress), "cannot be unpacked")
