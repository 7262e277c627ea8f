"""Makes the disk of the Vagrant boxes, with a boot loader and without root.

It has an MBR and three partitions: FAT with SYSLINUX, kernel and initramfs; the root image; the
data file system, which grows into the rest of the disk.
"""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from guestbuild import recipe
from guestbuild.errors import BuildError
from guestbuild.progress import run

SIGNATURE = 0x6465736B  # "desk": the MBR's disk signature, by which the initramfs finds the disk
_SECTOR_BYTES = 512
_MBR_PROGRAM_BYTES = 440
_MIB = 1 << 20
_ALIGN_BYTES = _MIB
_DATA_BYTES = 256 * _MIB
_FAT_SPARE_BYTES = 8 * _MIB
_FAT32_LBA, _LINUX = 0x0C, 0x83
_MBR_PROGRAMS = (
    Path("/usr/lib/syslinux/mbr/mbr.bin"),
    Path("/usr/lib/SYSLINUX/mbr.bin"),
    Path("/usr/share/syslinux/mbr.bin"),
)


def make(
    image: Path, manifest: dict[str, object], disk: Path, scratch: Path, least_bytes: int = 0
) -> int:
    """Write the raw disk, sparse and of ``least_bytes`` at least; return its size in bytes."""
    boot = scratch / "boot.fat"
    _make_boot(image, manifest, boot)
    root = image / _file(manifest, "root")
    starts_sizes = []
    place = _ALIGN_BYTES
    for size_bytes in (boot.stat().st_size, root.stat().st_size, _DATA_BYTES):
        aligned = -(-size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
        starts_sizes.append((place, aligned))
        place += aligned
    with disk.open("wb") as target:
        target.truncate(max(place, least_bytes))
        target.write(_mbr(_mbr_program(), starts_sizes))
        for source, (start, _size) in zip((boot, root), starts_sizes, strict=False):
            target.seek(start)
            with source.open("rb") as file:
                shutil.copyfileobj(file, target, _MIB)
    return max(place, least_bytes)


def _make_boot(image: Path, manifest: dict[str, object], target: Path) -> None:
    """Make the FAT partition: SYSLINUX starts the packed kernel, the direct boot's is too large."""
    kernel, initramfs = image / "vmlinuz", image / "initramfs-box.cpio"
    if not kernel.is_file() or not initramfs.is_file():
        raise BuildError(
            f"{kernel} or {initramfs.name} is missing: remove {image} and build it again"
        )
    content = kernel.stat().st_size + initramfs.stat().st_size
    size = -(-(content + _FAT_SPARE_BYTES) // _ALIGN_BYTES) * _ALIGN_BYTES
    with target.open("wb") as file:
        file.truncate(max(size, 40 * _MIB))  # FAT32 has at least 65,525 clusters of 512 bytes
    hidden = _ALIGN_BYTES // _SECTOR_BYTES
    run(
        ["mkfs.fat", "-F", "32", "-s", "1", "-n", "DESK-BOOT", "-i", f"{SIGNATURE:08x}",
         "-h", str(hidden), "--invariant", target],
        what="making the boot partition",
    )  # fmt: skip
    console = recipe.ARCHITECTURES[str(manifest["arch"])].console
    cmdline = f"{recipe.CMDLINE.format(console=console)} {recipe.CMDLINE_BOX}"
    cmdline = f"{cmdline} desk.disk={SIGNATURE:08x} desk.box"
    config = (
        "DEFAULT desk\nPROMPT 0\nTIMEOUT 0\nLABEL desk\n"
        f"  LINUX /vmlinuz\n  INITRD /initramfs.cpio\n  APPEND {cmdline}\n"
    )
    config_file = target.with_name("syslinux.cfg")
    config_file.write_text(config, "ascii")
    for source, name in (
        (kernel, "vmlinuz"),
        (initramfs, "initramfs.cpio"),
        (config_file, "syslinux.cfg"),
    ):
        run(
            ["mcopy", "-m", "-i", target, source, f"::{name}"],
            what=f"copying {name} to the boot partition",
        )
    run(["syslinux", "--install", target], what="installing the boot loader")


def _mbr_program() -> bytes:
    program = next((path for path in _MBR_PROGRAMS if path.is_file()), None)
    if program is None:
        raise BuildError("mbr.bin of syslinux is missing: apt-get install syslinux-common")
    return program.read_bytes()[:_MBR_PROGRAM_BYTES]


def _mbr(program: bytes, starts_sizes: list[tuple[int, int]]) -> bytes:
    """Return the first sector: SYSLINUX's program, the signature, three primary partitions."""
    sector = bytearray(_SECTOR_BYTES)
    sector[: len(program)] = program
    struct.pack_into("<I", sector, _MBR_PROGRAM_BYTES, SIGNATURE)
    unused_chs = b"\xfe\xff\xff"
    for index, (start, size) in enumerate(starts_sizes):
        active, kind = (0x80, _FAT32_LBA) if index == 0 else (0, _LINUX)
        entry = struct.pack(
            "<B3sB3sII", active, unused_chs, kind, unused_chs,
            start // _SECTOR_BYTES, size // _SECTOR_BYTES,
        )  # fmt: skip
        sector[446 + 16 * index : 462 + 16 * index] = entry
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def _file(manifest: dict[str, object], name: str) -> str:
    entry = manifest[name]
    assert isinstance(entry, dict)
    return str(entry["file"])
