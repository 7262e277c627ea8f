"""Guest images: installing from everywhere, and every kind of damage."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from desk.errors import ImageError
from desk.machine.images import ImageStore, host_architecture
from desk.paths import Home

FILES = {
    "vmlinux": b"kernel" * 1000,
    "initramfs.img": b"early" * 1000,
    "root.erofs": b"root" * 9999,
}


def make_image(
    directory: Path, version: str = "0.1.0", arch: str = "", cmdline: str = "quiet"
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    entries = {}
    for key, (name, content) in zip(("kernel", "initramfs", "root"), FILES.items(), strict=True):
        (directory / name).write_bytes(content)
        entries[key] = {"file": name, "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {
        "format": 1,
        "version": version,
        "arch": arch or host_architecture(),
        "cmdline": cmdline,
        **entries,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def make_tar(image: Path, file: Path, mode: str = "w", prefix: str = "") -> Path:
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name in ("manifest.json", *FILES):
            archive.add(image / name, f"{prefix}{name}")
    return file


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "image")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(Home(tmp_path / "home"))


@pytest.fixture(autouse=True)
def nothing_half_made(store: ImageStore) -> Iterator[None]:
    yield
    directory = store._directory
    if directory.exists():
        assert [e.name for e in directory.iterdir() if e.name.startswith(".")] == []


def test_the_home_that_an_image_makes_is_its_owners_only(store: ImageStore, image: Path) -> None:
    store.install(str(image))
    for directory in (store._directory, store._directory.parent):
        assert directory.stat().st_mode & 0o077 == 0


def test_directory_is_installed_and_verified(store: ImageStore, image: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    installed = store.install(str(image), lambda *step: seen.append(step))
    assert installed.manifest.version == "0.1.0"
    assert installed.kernel.read_bytes() == FILES["vmlinux"]
    assert installed.root.read_bytes() == FILES["root.erofs"]
    assert seen[-1] == ("Verifying root.erofs", len(FILES["root.erofs"]), len(FILES["root.erofs"]))
    store.check(installed)
    store.verify(installed)
    assert store.newest() == installed
    assert store.get(installed.manifest.identity) == installed


def test_installing_twice_copies_once(store: ImageStore, image: Path) -> None:
    first = store.install(str(image))
    inode = first.root.stat().st_ino
    seen: list[str] = []
    again = store.install(str(image), lambda text, _done, _all: seen.append(text))
    assert again.root.stat().st_ino == inode
    assert seen == []


def test_rebuilt_image_of_the_same_version_replaces(store: ImageStore, tmp_path: Path) -> None:
    store.install(str(make_image(tmp_path / "a")))
    installed = store.install(str(make_image(tmp_path / "b", cmdline="quiet lpj=1")))
    assert installed.manifest.cmdline == "quiet lpj=1"
    assert len(store.installed()) == 1


@pytest.mark.parametrize(
    ("mode", "prefix"), [("w", ""), ("w:gz", "./"), ("w:xz", "guest/"), ("w:bz2", "")]
)
def test_tars_of_every_kind(
    store: ImageStore, image: Path, tmp_path: Path, mode: str, prefix: str
) -> None:
    installed = store.install(str(make_tar(image, tmp_path / "image.tar", mode, prefix)))
    assert installed.initramfs.read_bytes() == FILES["initramfs.img"]
    store.verify(installed)


def test_zstandard_tar(store: ImageStore, image: Path, tmp_path: Path) -> None:
    tar = make_tar(image, tmp_path / "image.tar")
    subprocess.run(["zstd", "-q", str(tar)], check=True)
    installed = store.install(f"{tar}.zst")
    store.verify(installed)
    cut = tmp_path / "cut.tar.zst"
    cut.write_bytes(Path(f"{tar}.zst").read_bytes()[:-40])
    store.remove(installed.manifest.identity)
    with pytest.raises(ImageError, match=r"cut\.tar\.zst"):
        store.install(str(cut))


def test_manifest_may_stand_anywhere_in_a_tar(
    store: ImageStore, image: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "late.tar", "w") as archive:
        for name in (*FILES, "manifest.json"):
            archive.add(image / name, name)
    store.verify(store.install(str(tmp_path / "late.tar")))


def test_newest_version_for_this_computer_is_the_default(store: ImageStore, tmp_path: Path) -> None:
    for version in ("0.9.0", "0.10.0", "0.2.0"):
        store.install(str(make_image(tmp_path / version, version)))
    store.install(str(make_image(tmp_path / "far", "9.0.0", arch="riscv64")))
    assert store.newest().manifest.version == "0.10.0"
    assert store.newest("riscv64").manifest.version == "9.0.0"
    with pytest.raises(ImageError, match="is for riscv64"):
        store.install(str(tmp_path / "far"), expect_arch="amd64")


def test_no_image_says_how_to_get_one(store: ImageStore) -> None:
    with pytest.raises(ImageError, match="no guest image") as caught:
        store.newest()
    assert "desk machine image install" in caught.value.hint


@pytest.mark.parametrize("name", list(FILES))
def test_corrupt_file_is_named(store: ImageStore, image: Path, name: str) -> None:
    content = bytearray((image / name).read_bytes())
    content[len(content) // 2] ^= 1
    (image / name).write_bytes(bytes(content))
    with pytest.raises(ImageError, match=name) as caught:
        store.install(str(image))
    assert "SHA-256" in caught.value.text
    assert store.installed() == []


def test_missing_and_truncated_files_are_named(
    store: ImageStore, image: Path, tmp_path: Path
) -> None:
    tar = make_tar(image, tmp_path / "image.tar.gz", "w:gz")
    tar.write_bytes(tar.read_bytes()[:-30])
    with pytest.raises(ImageError, match=r"image\.tar\.gz"):
        store.install(str(tar))
    (image / "root.erofs").unlink()
    with pytest.raises(ImageError, match=r"root\.erofs"):
        store.install(str(image))
    with pytest.raises(ImageError, match="does not exist"):
        store.install(str(tmp_path / "nowhere"))
    assert store.installed() == []


def test_tar_without_a_file_of_the_manifest(store: ImageStore, image: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "part.tar", "w") as archive:
        for name in ("manifest.json", "vmlinux", "initramfs.img"):
            archive.add(image / name, name)
    with pytest.raises(ImageError, match=r"root\.erofs is missing"):
        store.install(str(tmp_path / "part.tar"))
    (tmp_path / "noise").write_bytes(b"no tar at all" * 1000)
    with pytest.raises(ImageError, match="no whole tar"):
        store.install(str(tmp_path / "noise"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format 2"),
        ({"version": "../../etc"}, "cannot name an image"),
        ({"kernel": {"file": "../vmlinux", "sha256": "0" * 64}}, "kernel names no file"),
        ({"root": {"file": "root.erofs", "sha256": "beef"}}, "root has no SHA-256"),
        ({"cmdline": None}, "cmdline is missing"),
        ({"initramfs": "initramfs.img"}, "initramfs names no file"),
    ],
)
def test_manifests_that_cannot_be(
    store: ImageStore, image: Path, change: dict[str, object], words: str
) -> None:
    manifest = json.loads((image / "manifest.json").read_text())
    (image / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(ImageError, match=words):
        store.install(str(image))


def test_tar_members_outside_the_manifest_are_not_unpacked(
    store: ImageStore, image: Path, tmp_path: Path
) -> None:
    tar = make_tar(image, tmp_path / "image.tar")
    with tarfile.open(tar, "a") as archive:
        for name in ("../escaped", "/etc/escaped", "extra"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"bad"))
        link = tarfile.TarInfo("vmlinux2")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    installed = store.install(str(tar))
    assert sorted(e.name for e in installed.directory.iterdir()) == sorted(
        [*FILES, "manifest.json", "verified.json"]
    )


def test_damage_after_installing_is_seen_before_a_boot(store: ImageStore, image: Path) -> None:
    installed = store.install(str(image))
    installed.root.write_bytes(FILES["root.erofs"][:-1])
    with pytest.raises(ImageError, match=r"root\.erofs has 39995 bytes instead of 39996") as caught:
        store.check(installed)
    assert "install" in caught.value.hint
    repaired = store.install(str(image))
    store.check(repaired)
    repaired.kernel.unlink()
    with pytest.raises(ImageError, match="vmlinux"):
        store.check(repaired)


@contextlib.contextmanager
def web_server(directory: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            return

        def do_GET(self) -> None:
            if self.path != "/cut.tar":
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"only this")

    handler = partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_download_with_its_checksum(store: ImageStore, image: Path, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    tar = make_tar(image, tmp_path / "web" / "guest.tar")
    digest = hashlib.sha256(tar.read_bytes()).hexdigest()
    with web_server(tmp_path / "web") as url:
        with pytest.raises(ImageError, match="without its checksum"):
            store.install(f"{url}/guest.tar")
        with pytest.raises(ImageError, match="SHA-256"):
            store.install(f"{url}/guest.tar#sha256={'0' * 64}")
        with pytest.raises(ImageError, match="cannot fetch"):
            store.install(f"{url}/missing.tar#sha256={digest}")
        with pytest.raises(ImageError, match="cut off at 9 of 100000 bytes"):
            store.install(f"{url}/cut.tar#sha256={digest}")
        assert store.installed() == []
        store.verify(store.install(f"{url}/guest.tar#sha256={digest}"))
    with pytest.raises(ImageError, match="cannot fetch"):
        store.install(f"{url}/guest.tar#sha256={digest}")
    with pytest.raises(ImageError, match="SHA-256"):
        store.install(f"{tar}#sha256={'0' * 64}")
    store.install(f"{tar}#sha256={digest}")


@pytest.mark.root
def test_full_disk_is_named_and_leaves_nothing(image: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(small)], check=True)
    try:
        store = ImageStore(Home(small))
        with pytest.raises(ImageError, match="No space left on device") as caught:
            store.install(str(image))
        assert "Make room" in caught.value.hint
        assert list(store._directory.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_registry_beside_an_image_is_installed_with_it(tmp_path: Path, image: Path) -> None:
    assert ImageStore(Home(tmp_path / "without")).install(str(image)).registry is None
    content = b"registry" * 100
    (image / "registry.tar.xz").write_bytes(content)
    manifest = json.loads((image / "manifest.json").read_text())
    manifest["registry"] = {
        "file": "registry.tar.xz",
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (image / "manifest.json").write_text(json.dumps(manifest))
    store = ImageStore(Home(tmp_path / "with"))
    installed = store.install(str(image))
    assert installed.registry is not None
    assert installed.registry.read_bytes() == content
    (image / "registry.tar.xz").write_bytes(b"other" * 160)
    with pytest.raises(ImageError, match=r"registry\.tar\.xz"):
        ImageStore(Home(tmp_path / "damaged")).install(str(image))
