"""The parts of the guest image's build that need no packages: kernel, disk, lists, scripts."""

from __future__ import annotations

import gzip
import io
import os
import re
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tests.programs import program

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "vm-images"))

from guestbuild import box, box_disk, engine, host, kernel, packages, recipe  # noqa: E402
from guestbuild.errors import BuildError  # noqa: E402

GUEST = REPOSITORY / "packaging" / "guest"
SCRIPTS = sorted(
    [
        GUEST / "initramfs" / "init",
        *(GUEST / "bin").iterdir(),
        *(p for p in (GUEST / "lib").iterdir() if p.read_bytes().startswith(b"#!/bin/sh")),
        REPOSITORY / "vm-images" / "boxes" / "provision.sh",
    ]
)


def an_elf(segments: list[tuple[int, bytes]], *, tail: bytes) -> bytes:
    """Return an ELF executable with these segments (type, content) at offsets of 4 KiB."""
    header = bytearray(64 + 56 * len(segments))
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<Q", header, 40, 999)
    struct.pack_into("<HHHHH", header, 54, 56, len(segments), 64, 7, 6)
    body = b""
    for index, (kind, content) in enumerate(segments):
        offset = 4096 * (index + 1)
        place = 64 + 56 * index
        struct.pack_into("<I", header, place, kind)
        struct.pack_into("<QQQQQ", header, place + 8, offset, 0, 0, len(content), len(content))
        body += content.ljust(4096, b"\0")
    return bytes(header).ljust(4096, b"\0") + body + tail


def segment_sizes(elf: bytes, index: int) -> tuple[int, int]:
    """Return a segment's size in the file and in memory."""
    in_file, in_memory = struct.unpack_from("<QQ", elf, 64 + 56 * index + 32)
    return in_file, in_memory


def test_a_trimmed_kernel_keeps_its_memory_image_and_loses_the_rest() -> None:
    text, data = b"\x90" * 4000, b"\1\2\3" + bytes(1000)
    elf = an_elf([(1, text), (1, data)], tail=b"relocations" * 100)
    trimmed = kernel.trim_elf(elf)
    assert segment_sizes(trimmed, 0) == (4000, 4000)
    assert segment_sizes(trimmed, 1) == (3, 1003)
    assert trimmed[4096:8096] == text
    assert trimmed[8192:] == b"\1\2\3"
    assert struct.unpack_from("<Q", trimmed, 40) == (0,)
    assert struct.unpack_from("<HH", trimmed, 60) == (0, 0)


def test_notes_survive_trimming() -> None:
    """The entry for direct boot stands in a note."""
    note = b"note\0\0\0\0"
    trimmed = kernel.trim_elf(an_elf([(1, b"x" * 10), (4, note)], tail=b"sections"))
    assert trimmed[8192:] == note


def test_a_file_that_is_no_kernel_is_named_so() -> None:
    with pytest.raises(BuildError, match="no bzImage"):
        kernel.direct_boot(bytes(1024), "amd64")


def test_other_processors_boot_their_kernel_as_it_is() -> None:
    assert kernel.direct_boot(b"Image", "arm64") == b"Image"


@pytest.mark.parametrize(
    ("file", "name"),
    [("virtio-rng.ko.xz", "virtio_rng"), ("kernel/net/9p/9pnet.ko", "9pnet"), ("a-b", "a_b")],
)
def test_module_names_are_the_kernels(file: str, name: str) -> None:
    assert kernel.module_name(file) == name


def test_the_partition_table_says_where_things_are() -> None:
    sector = box_disk._mbr(
        b"\xeb" * 440, [(1 << 20, 40 << 20), (41 << 20, 27 << 20), (68 << 20, 256 << 20)]
    )
    assert len(sector) == 512
    assert sector[:440] == b"\xeb" * 440
    assert sector[510:] == b"\x55\xaa"
    assert struct.unpack_from("<I", sector, 440) == (box_disk.SIGNATURE,)
    entries = [struct.unpack_from("<B3xB3xII", sector, 446 + 16 * i) for i in range(4)]
    assert entries == [
        (0x80, 0x0C, 2048, 81920),
        (0, 0x83, 83968, 55296),
        (0, 0x83, 139264, 524288),
        (0, 0, 0, 0),
    ]


def test_a_box_is_a_gzipped_tar_that_depends_on_its_content_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"disk" * 1000)
    for name in ("a", "b"):
        box._pack(tmp_path / name, {"metadata.json": b"{}\n", "box.img": disk})
        os.utime(disk, (1, 1))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress((tmp_path / "a").read_bytes()))) as made:
        assert made.getnames() == ["metadata.json", "box.img"]
        content = made.extractfile("box.img")
        assert content is not None
        assert content.read() == b"disk" * 1000


def test_paths_of_packages_are_those_of_the_merged_usr() -> None:
    assert packages._merged("lib/modules/x") == "usr/lib/modules/x"
    assert packages._merged("sbin/mke2fs") == "usr/sbin/mke2fs"
    assert packages._merged("etc/services") == "etc/services"


def test_what_is_missing_is_told_with_the_command_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = tmp_path / "list"
    listing.write_text(
        "# comment\nsh dash\nno-such-program some-package\n/no/such/file other box\n"
        "no-such-emulator emulator arm64\n"
    )
    monkeypatch.setattr(host, "LIST", listing)
    monkeypatch.setattr(recipe, "host_architecture", lambda: "amd64")
    own, foreign = recipe.ARCHITECTURES["amd64"], recipe.ARCHITECTURES["arm64"]
    assert host.missing_packages(own, for_box=False) == ["some-package"]
    assert host.missing_packages(own, for_box=True) == ["other", "some-package"]
    assert host.missing_packages(foreign, for_box=False) == ["emulator", "some-package"]
    with pytest.raises(BuildError, match="apt-get install some-package"):
        host.check(own)


def test_the_engines_distribution_is_the_projects() -> None:
    facts = engine.project()
    assert facts["name"] == "desk-toolkit"
    assert any(str(name).startswith("pyroute2") for name in facts["requires"])


def test_every_architecture_has_a_console_and_wheels() -> None:
    for arch in recipe.ARCHITECTURES.values():
        assert arch.console in recipe.CMDLINE.format(console=arch.console)
        assert arch.wheel_platforms


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script: Path) -> None:
    assert script.name == "provision.sh" or os.access(script, os.X_OK)
    subprocess.run([program("busybox"), "sh", "-n", str(script)], check=True)


def test_sudo_runs_the_command_behind_its_options() -> None:
    sudo = GUEST / "bin" / "sudo"
    argv = ["-E", "-H", "-n", "-u", "root", "NAME=value", "sh", "-c", 'echo "$NAME $1"', "sh", "-x"]
    done = subprocess.run([sudo, *argv], capture_output=True, text=True, check=True)
    assert done.stdout == "value -x\n"


_IMPORT_ALL = """
import fnmatch, importlib, importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        place = name.removeprefix("desk.").replace(".", "/")
        if name.startswith("desk.") and any(
            fnmatch.fnmatch(place, pattern) or fnmatch.fnmatch(place + ".py", pattern)
            for pattern in sys.argv[1:]
        ):
            raise ModuleNotFoundError(f"the guest has no {name}")

sys.meta_path.insert(0, Absent())
from desk.cli import catalog, in_machine
entries = [e for s in in_machine._SECTIONS.values() for e in s.values()]
for group in (catalog.CONTAINER_GROUP, catalog.IMAGE_GROUP, catalog.SYSTEM_GROUP):
    entries += group.values()
for entry in entries:
    importlib.import_module("desk.cli.commands." + entry.target.partition(":")[0])
found = [name for name, module in sys.modules.items() if getattr(module, "__spec__", None)]
packages = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
print(*sorted(name for name in packages if name[0] != "_" and name != "sitecustomize"))
"""


def test_the_guest_has_what_its_docker_command_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", _IMPORT_ALL, *recipe.DESKTOP_LEFT_OUT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    required = {re.split(r"[<>=]", line)[0] for line in engine.project()["requires"]}
    assert set(done.stdout.split()) <= required | {"desk"}
    assert {"click", "wcwidth"} <= required
