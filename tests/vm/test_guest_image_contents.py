"""The built guest image: its manifest, its size, and what is in it and what is not."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "vm-images"))

from guestbuild import recipe  # noqa: E402
from guestbuild.kernel import module_name  # noqa: E402

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]
LIMIT_BYTES = 90_000_000
PACKED_LIMIT_BYTES = 60_000_000


@pytest.fixture(scope="module")
def manifest(guest_image: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((guest_image / "manifest.json").read_text("utf-8"))
    return document


@pytest.fixture(scope="module")
def usr(guest_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's /usr, unpacked."""
    target = tmp_path_factory.mktemp("guest") / "usr"
    subprocess.run(
        ["unsquashfs", "-q", "-n", "-d", target, guest_image / "root.squashfs"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return target


def test_the_manifest_names_the_files_with_their_checksums(
    guest_image: Path, manifest: dict[str, Any]
) -> None:
    assert manifest["format"] == 1
    assert manifest["arch"] == recipe.host_architecture()
    for part in ("kernel", "initramfs", "root"):
        content = (guest_image / manifest[part]["file"]).read_bytes()
        assert manifest[part]["size"] == len(content)
        assert manifest[part]["sha256"] == hashlib.sha256(content).hexdigest()
    assert "rdinit=/init" in manifest["cmdline"]
    assert manifest["packages"]["openssh-server"]
    assert manifest["python_packages"]["pyroute2"]


def test_what_is_read_ahead_is_there_and_no_more_than_the_greeting_needs(usr: Path) -> None:
    names = (usr / "share/desk/prefetch").read_text("utf-8").split()
    assert all((usr / name.removeprefix("/usr/")).is_file() for name in names)
    assert any(name.endswith("/deskd/__pycache__/opening.cpython-313.pyc") for name in names)
    assert not any("/compose." in name for name in names)


def test_the_image_is_small(guest_image: Path, manifest: dict[str, Any]) -> None:
    files = [guest_image / manifest[part]["file"] for part in ("kernel", "initramfs", "root")]
    total = sum(file.stat().st_size for file in files)
    assert total < LIMIT_BYTES, {file.name: file.stat().st_size for file in files}
    # What has to be downloaded, in the quickest of the packings that an image may come in.
    packed = sum(
        len(
            subprocess.run(["zstd", "-q", "-3", "-c", file], capture_output=True, check=True).stdout
        )
        for file in files
    )
    assert packed < PACKED_LIMIT_BYTES


def test_the_kernel_can_do_what_containers_need(usr: Path, manifest: dict[str, Any]) -> None:
    release = manifest["kernel_release"]
    modules = usr / "lib/modules" / release
    builtin = {module_name(line) for line in (modules / "modules.builtin").read_text().split()}
    there = {module_name(path) for path in modules.rglob("*.ko")}
    wanted = {module_name(name) for name in recipe.REQUIRED_FEATURES}
    assert wanted <= there | builtin
    assert there == set(manifest["modules"])
    assert (modules / "modules.dep.bin").is_file()


def test_no_program_gives_its_caller_rights(usr: Path) -> None:
    special = [
        str(path.relative_to(usr))
        for path in usr.rglob("*")
        if not path.is_symlink() and path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
    ]
    assert special == []


def test_everything_belongs_to_root(guest_image: Path) -> None:
    listing = subprocess.run(
        ["unsquashfs", "-lln", guest_image / "root.squashfs"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    entries = [line.split() for line in listing if line.startswith(("-", "d", "l"))]
    assert len(entries) > 1000
    assert {entry[1] for entry in entries} == {"0/0"}


def test_python_is_compiled_and_never_checks_its_sources(usr: Path) -> None:
    stdlib = usr / f"lib/python{recipe.PYTHON}"
    assert list(stdlib.rglob("*.py")) == []
    compiled = [*stdlib.rglob("*.pyc")]
    assert len(compiled) > 150
    deskd = usr / "lib/python3/dist-packages/deskd"
    sources = [*deskd.rglob("*.py")]
    assert len(sources) > 20
    for source in sources:
        cache = source.parent / "__pycache__" / f"{source.stem}.cpython-313.pyc"
        compiled.append(cache)
    for cache in compiled:
        # PEP 552: bit 0 says "by hash", bit 1 "check the source"; 1 alone never looks at it.
        assert int.from_bytes(cache.read_bytes()[4:8], "little") == 1, cache


def test_links_lead_somewhere(usr: Path) -> None:
    skeleton = usr / "share/desk/root"
    later = {"/var/lib/desk/local", "/proc/self/mounts", "desk/engine.sock"}
    for path in usr.rglob("*"):
        if not path.is_symlink():
            continue
        target = str(path.readlink())
        if target in later or skeleton in path.parents:
            continue
        where = path.parent / target
        if target.startswith("/"):
            where = usr / target.removeprefix("/usr/")
            if target.startswith("/etc/"):
                where = skeleton / target.removeprefix("/")
        assert where.exists() or where.is_symlink(), f"{path} -> {target}"


def test_programs_find_their_libraries(usr: Path) -> None:
    libraries = {path.name for path in usr.rglob("*.so*")} | {"ld-linux-x86-64.so.2"}
    for program in ("bin/python3.13", "sbin/sshd", "sbin/nft", "sbin/mke2fs", "bin/nc"):
        output = subprocess.run(
            ["readelf", "-dW", usr / program], check=True, capture_output=True, text=True
        ).stdout
        needed = {
            line.split("[")[1].rstrip("]") for line in output.splitlines() if "NEEDED" in line
        }
        assert needed
        assert needed <= libraries, program


def test_documentation_stays_behind_but_licences_do_not(
    usr: Path, manifest: dict[str, Any]
) -> None:
    assert not (usr / "share/man").exists()
    assert not (usr / "share/locale").exists()
    with_licence = {path.parent.name for path in (usr / "share/doc").glob("*/copyright")}
    assert {"busybox-static", "openssh-server", "desk"} <= with_licence


def test_no_key_or_password_ships(usr: Path) -> None:
    etc = usr / "share/desk/root/etc"
    assert not list(etc.glob("ssh/ssh_host_*"))
    for line in (etc / "shadow").read_text().splitlines():
        assert line.split(":")[1] in {"*", "!"}


def test_a_second_build_has_nothing_to_do(guest_image: Path) -> None:
    before = (guest_image / "manifest.json").stat()
    done = subprocess.run(
        [sys.executable, REPOSITORY / "vm-images" / "build", "--output", guest_image],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "is up to date" in done.stderr
    after = (guest_image / "manifest.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
