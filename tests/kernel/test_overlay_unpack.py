"""Unpacking layers: what a tar can hold comes out right, and nothing hostile gets out."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from deskd import errors
from deskd.images.recipe import replay
from deskd.images.streams import decompressed
from deskd.images.unpack import Unpacked, unpack
from tests.kernel.image_store import directory, entry, hard_link, symlink, tar

pytestmark = pytest.mark.root


class Place:
    """A directory to unpack into, with something beside it that must stay as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.diff = path / "layer" / "diff"
        self.diff.mkdir(parents=True)
        self.replaced = path / "layer" / "replaced"
        self.replaced.mkdir()
        self.recipe = path / "layer" / "recipe"
        self.outside = path / "outside"
        self.outside.mkdir()
        self.outside.joinpath("precious").write_text("precious")

    def unpack(self, data: bytes) -> Unpacked:
        return unpack(
            decompressed(io.BytesIO(data)),
            str(self.diff),
            recipe=str(self.recipe),
            replaced_root=str(self.replaced),
        )

    def repacked(self, unpacked: Unpacked) -> bytes:
        return b"".join(
            replay(str(self.recipe), str(self.diff), unpacked.replaced, str(self.replaced))
        )

    def names(self) -> set[str]:
        return {str(path.relative_to(self.diff)) for path in self.diff.rglob("*")}

    def check_outside(self) -> None:
        assert [p.name for p in self.outside.iterdir()] == ["precious"]
        assert self.outside.joinpath("precious").read_text() == "precious"
        assert {p.name for p in self.path.iterdir()} == {"layer", "outside"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_everything_that_a_layer_holds_comes_out_as_it_went_in(place: Place) -> None:
    capability = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)
    data = tar(
        directory("./"),
        directory("./usr", 0o2755),
        entry("./usr/tool", b"#!", mode=0o4755, owner=(12, 34),
              xattrs={"security.capability": capability, "user.note": b"\xff\x00x"}),
        hard_link("./usr/other", "./usr/tool"),
        symlink("./usr/link", "/etc/passwd"),
        entry("./dev/null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
        entry("./dev/disk", kind=tarfile.BLKTYPE, device=(7, 1), mode=0o600),
        entry("./run/pipe", kind=tarfile.FIFOTYPE, mode=0o622),
        entry("./" + "n" * 200 + "/ünïcode", b"x", pax={"mtime": "1600000000.123456789"}),
        entry("./sticky/empty"),
    )  # fmt: skip
    unpacked = place.unpack(data)
    tool = place.diff / "usr/tool"
    status = tool.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12, 34, 0o4755)
    assert status.st_mtime == 1_700_000_000
    assert status.st_ino == (place.diff / "usr/other").stat().st_ino
    assert os.getxattr(tool, "user.note") == b"\xff\x00x"
    assert os.getxattr(tool, "security.capability") == capability
    assert (place.diff / "usr/link").readlink() == Path("/etc/passwd")
    assert stat.S_IMODE((place.diff / "usr").stat().st_mode) == 0o2755
    assert (place.diff / "usr").stat().st_mtime == 1_700_000_000
    assert (place.diff / "dev/null").stat().st_rdev == os.makedev(1, 3)
    assert (place.diff / "dev/disk").is_block_device()
    assert (place.diff / "run/pipe").is_fifo()
    precise = place.diff / ("n" * 200) / "ünïcode"
    assert precise.stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert unpacked.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert unpacked.size_bytes == 3 + len("/etc/passwd")
    assert unpacked.tar_bytes == len(data)
    assert place.repacked(unpacked) == data


def test_whiteouts_become_those_of_overlayfs(place: Place) -> None:
    data = tar(
        entry("etc/.wh.gone"),
        directory("opt"),
        entry("opt/.wh..wh..opq"),
        entry("opt/new", b"n"),
        entry("var/was-here", b"1"),
        entry("var/.wh.was-here"),
        entry(".wh..wh.plnk"),
    )
    unpacked = place.unpack(data)
    gone = (place.diff / "etc/gone").lstat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    assert os.getxattr(place.diff / "opt", "trusted.overlay.opaque") == b"y"
    assert (place.diff / "var/was-here").lstat().st_rdev == 0
    assert not any(name.startswith(".wh.") for path in place.names() for name in path.split("/"))
    assert place.repacked(unpacked) == data


def test_later_entries_replace_earlier_ones_and_the_tar_can_still_be_made_again(
    place: Place,
) -> None:
    data = tar(
        entry("a", b"first"),
        entry("a", b"second"),
        directory("d"),
        entry("d/x", b"in a directory"),
        symlink("d", "elsewhere"),
        directory("d"),
        entry("d/x", b"again"),
        hard_link("h", "d/x"),
        entry("h", b"own"),
    )
    unpacked = place.unpack(data)
    assert (place.diff / "a").read_bytes() == b"second"
    assert (place.diff / "d/x").read_bytes() == b"again"
    assert (place.diff / "h").read_bytes() == b"own"
    assert place.repacked(unpacked) == data


@pytest.mark.parametrize(
    ("layout", "name"), [("gnu", "big"), ("posix", "big"), ("posix", "bïg"), ("posix", "b" * 200)]
)
def test_sparse_files_stay_sparse(place: Place, tmp_path: Path, layout: str, name: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with source.joinpath(name).open("wb") as file:
        file.truncate(64 << 20)
        file.seek(10 << 20)
        file.write(b"middle")
    data = subprocess.run(
        ["tar", "-C", source, "-S", f"--format={layout}", "-cf", "-", name],
        check=True,
        capture_output=True,
    ).stdout
    assert len(data) < 1 << 20
    unpacked = place.unpack(data)
    assert place.names() == {name}
    big = place.diff / name
    assert big.stat().st_size == 64 << 20
    assert big.stat().st_blocks * 512 < 1 << 20
    with big.open("rb") as file:
        file.seek(10 << 20)
        assert file.read(7) == b"middle\0"
    assert place.repacked(unpacked) == data


def in_two_streams(data: bytes) -> bytes:
    """Return xz as a parallel compressor makes it, or who appends one file to another."""
    return lzma.compress(data[:3000]) + bytes(8) + lzma.compress(data[3000:]) + bytes(4)


@pytest.mark.parametrize(
    "compress",
    [bytes, gzip.compress, lzma.compress, in_two_streams, bz2.compress, zstandard.compress],
)
def test_compression_is_found_by_its_magic(place: Place, compress: object) -> None:
    data = tar(entry("a", b"content" * 1000))
    packed = compress(data)  # type: ignore[operator]
    unpacked = place.unpack(packed)
    assert (place.diff / "a").read_bytes() == b"content" * 1000
    assert unpacked.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"


ESCAPES = {
    "dot-dot": [entry("../outside/precious", b"bad")],
    "dot-dot inside": [entry("a/../../outside/new", b"bad")],
    "dot-dot whiteout": [entry("../outside/.wh.precious")],
    "whiteout of the parent": [entry("a/.wh...")],
    "hard link out": [hard_link("x", "../outside/precious"), entry("x", b"bad")],
    "hard link to nothing": [hard_link("x", "missing")],
    "root as a file": [entry("./", b"bad")],
    "unknown type": [entry("x", kind=b"Z")],
    "negative owner": [entry("x", owner=(-1, 0))],
    "file as a directory": [entry("f"), entry("f/x", b"bad")],
    "dangling link on the way": [symlink("l", "/nowhere"), entry("l/x", b"bad")],
    "endless depth": [entry("a/" * 300 + "x")],
    "looping link": [symlink("l", "l"), entry("l/x", b"bad")],
}


@pytest.mark.parametrize("name", ESCAPES)
def test_hostile_entries_are_refused_in_one_sentence(place: Place, name: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        place.unpack(tar(*ESCAPES[name]))
    assert "\n" not in str(caught.value)
    place.check_outside()


def test_links_on_the_way_end_inside_the_layer(place: Place) -> None:
    outside = str(place.outside)
    place.unpack(
        tar(
            directory(outside.lstrip("/")),
            directory("outside"),
            symlink("absolute", outside),
            entry("absolute/precious", b"bad"),
            symlink("up", "../../outside"),
            entry("up/precious", b"bad"),
            symlink("chain", "up/precious"),
            entry("chain", b"a file of its own"),
            symlink("name", f"{outside}/precious"),
            hard_link("copy", "name"),
            entry("/rooted", b"counts from the root"),
        )
    )
    place.check_outside()
    assert (place.diff / outside.lstrip("/") / "precious").read_bytes() == b"bad"
    assert (place.diff / "outside/precious").read_bytes() == b"bad"
    assert (place.diff / "chain").read_bytes() == b"a file of its own"
    assert (place.diff / "copy").is_symlink()
    assert (place.diff / "rooted").is_file()


def test_devices_and_pipes_of_an_archive_get_no_data(place: Place) -> None:
    # Opening the pipe for writing would wait for ever; the device would swallow the content.
    place.unpack(
        tar(
            entry("pipe", kind=tarfile.FIFOTYPE),
            entry("pipe", b"a file"),
            entry("null", kind=tarfile.CHRTYPE, device=(1, 3)),
            entry("null", b"a file"),
        )
    )
    assert (place.diff / "pipe").read_bytes() == b"a file"
    assert (place.diff / "null").read_bytes() == b"a file"


def test_attributes_that_steer_overlayfs_are_not_taken_from_archives(place: Place) -> None:
    place.unpack(
        tar(
            entry("d/f", b"x", xattrs={"trusted.overlay.metacopy": b"", "user.kept": b"1"}),
            entry("r", kind=tarfile.DIRTYPE, xattrs={"trusted.overlay.redirect": b"/etc"}),
        )
    )
    assert os.listxattr(place.diff / "d/f") == ["user.kept"]
    assert os.listxattr(place.diff / "r") == []


def damaged_archives() -> dict[str, bytes]:
    good = tar(entry("a", b"x" * 5000), entry("b", b"y" * 5000))
    flipped = bytearray(good)
    flipped[512 + 5120 + 10] ^= 0xFF  # in the second header
    packed = gzip.compress(good)
    return {
        "no tar": b"\x7fELF" + b"junk" * 2000,
        "empty": b"",
        "short": b"x",
        "second header": bytes(flipped),
        "cut in a file": good[:3000],
        "cut in a header": good[: 512 + 5120 + 100],
        "cut gzip": packed[:-20],
        "gzip of junk": gzip.compress(b"junk" * 2000),
        "flipped gzip": packed[:40] + b"\0\0\0\0" + packed[44:],
        "cut xz": lzma.compress(good)[:-20],
        "cut bzip2": bz2.compress(good)[:-20],
        "broken zstd": zstandard.compress(good)[:20] + b"\0" * 40,
        "broken bzip2": b"BZh9" + b"\0" * 100,
        "broken xz": b"\xfd7zXZ\x00" + b"\0" * 100,
    }


@pytest.mark.parametrize("name", damaged_archives())
def test_a_damaged_archive_is_one_sentence(place: Place, name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="damaged") as caught:
        place.unpack(damaged_archives()[name])
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), min_size=1, max_size=6),
       st.integers(0, 30))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_damage_ends_in_a_sentence_or_in_the_same_bytes(
    changes: list[tuple[int, int]], block: int
) -> None:
    data = bytearray(
        tar(
            directory("d"),
            entry("d/file", b"content" * 200, xattrs={"user.x": b"1"}),
            symlink("l", "d"),
            entry("l/through", b"x"),
            hard_link("h", "d/file"),
            entry("n" * 150, b"long name"),
            entry("null", kind=tarfile.CHRTYPE, device=(1, 3)),
            entry("d/.wh.gone"),
        )
    )
    start = min(block * 512, len(data) - 512)
    for offset, value in changes:
        data[start + offset] = value
    if changes[0][1] % 2:  # a checksum that fits lets the damage through to what comes after it
        block_bytes = bytes(data[start : start + 512])
        checksum = sum(block_bytes[:148]) + 8 * 32 + sum(block_bytes[156:])
        data[start + 148 : start + 156] = b"%06o\0 " % checksum
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        said = ""
        try:
            assert place.repacked(place.unpack(bytes(data))) == bytes(data)
        except errors.InvalidArgument as error:
            said = str(error)
        assert "\n" not in said
        place.check_outside()


def test_an_endless_header_is_not_read_into_memory(place: Place) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    endless = header.tobuf(tarfile.GNU_FORMAT) + b"n" * (2 << 20)
    with pytest.raises(errors.InvalidArgument, match="header is too long"):
        place.unpack(endless)


def test_a_recipe_whose_files_changed_gives_other_bytes(place: Place) -> None:
    data = tar(entry("a", b"x" * 100), entry("b", b"y"))
    unpacked = place.unpack(data)
    (place.diff / "a").write_bytes(b"z" * 100)
    assert place.repacked(unpacked) != data
    (place.diff / "a").write_bytes(b"z")
    with pytest.raises(errors.DataLoss, match="too short"):
        place.repacked(unpacked)
    (place.diff / "a").unlink()
    with pytest.raises(errors.DataLoss, match="cannot be read"):
        place.repacked(unpacked)


def test_a_real_directory_tree_comes_out_like_gnu_tar_makes_it(
    place: Place, tmp_path: Path
) -> None:
    data = subprocess.run(
        ["tar", "-C", "/", "-cf", "-", "etc", "bin/busybox"], check=True, capture_output=True
    ).stdout
    unpacked = place.unpack(data)
    reference = tmp_path / "reference"
    reference.mkdir()
    subprocess.run(["tar", "-C", reference, "-xpf", "-"], input=data, check=True)
    compared = subprocess.run(
        ["diff", "-r", "--no-dereference", reference, place.diff], capture_output=True, check=False
    )
    assert compared.stdout == b""
    assert place.repacked(unpacked) == data
