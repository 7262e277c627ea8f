"""Packs the guest image as a Vagrant box: one disk with a boot loader, made without root.

The disk has an MBR and three partitions: FAT with SYSLINUX, kernel and initramfs; the root image;
the data file system, which grows into the rest of the disk. Boxes for further providers are the
same disk in another format; each has its directory in ``boxes/``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import struct
import tarfile
import tempfile
from pathlib import Path

from guestbuild import engine, recipe
from guestbuild.errors import BuildError
from guestbuild.progress import run, step

PROVIDERS = ("libvirt",)
BOXES = engine.PROJECT / "vm-images" / "boxes"
SIGNATURE = 0x6465736B  # "desk": the MBR's disk signature, by which the initramfs finds the disk
_SECTOR_BYTES = 512
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


def make(provider: str, image: Path, output: Path) -> None:
    """Write the box of ``provider`` for the built ``image``; nothing where it is up to date."""
    manifest = json.loads((image / "manifest.json").read_text("utf-8"))
    key = _input_key(provider, manifest)
    stamp = output.with_name(f"{output.name}.input")
    if output.is_file() and stamp.is_file() and stamp.read_text("ascii") == key:
        return
    if manifest["arch"] != "amd64":
        raise BuildError(f"boxes are made for amd64 only, this image is for {manifest['arch']}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as directory:
        scratch = Path(directory)
        with step("Making the box's disk"):
            disk = scratch / "disk.raw"
            size_bytes = _make_disk(image, manifest, disk, scratch)
            qcow2 = scratch / "box.img"
            argv: list[str | Path] = [
                "qemu-img",
                "convert",
                "-f",
                "raw",
                "-O",
                "qcow2",
                disk,
                qcow2,
            ]
            run(argv, what="converting the box's disk")
        with step(f"Packing {output.name}"):
            metadata = json.loads((BOXES / provider / "metadata.json").read_text("utf-8"))
            metadata["virtual_size"] = -(-size_bytes // (1 << 30))
            text = json.dumps(metadata, indent=2) + "\n"
            members: dict[str, bytes | Path] = {
                "metadata.json": text.encode(),
                "Vagrantfile": (BOXES / provider / "Vagrantfile").read_bytes(),
                "box.img": qcow2,
            }
            partial = scratch / "box"
            _pack(partial, members)
        partial.replace(output)
        stamp.write_text(key, "ascii")


def _input_key(provider: str, manifest: dict[str, object]) -> str:
    digest = hashlib.sha256(str(manifest["input"]).encode())
    for path in sorted((BOXES / provider).iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _make_disk(image: Path, manifest: dict[str, object], disk: Path, scratch: Path) -> int:
    """Write the raw disk; return its size in bytes."""
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
        target.truncate(place)
        target.write(_mbr(starts_sizes))
        for source, (start, _size) in zip((boot, root), starts_sizes, strict=False):
            target.seek(start)
            with source.open("rb") as file:
                shutil.copyfileobj(file, target, _MIB)
    return place


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
    config = f"DEFAULT desk\nPROMPT 0\nTIMEOUT 0\nLABEL desk\n  LINUX /vmlinuz\n  INITRD /initramfs.cpio\n  APPEND {cmdline}\n"  # noqa: E501
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


def _mbr(starts_sizes: list[tuple[int, int]]) -> bytes:
    """Return the first sector: SYSLINUX's program, the signature, three primary partitions."""
    program = next((path for path in _MBR_PROGRAMS if path.is_file()), None)
    if program is None:
        raise BuildError("mbr.bin of syslinux is missing: apt-get install syslinux-common")
    sector = bytearray(_SECTOR_BYTES)
    code = program.read_bytes()[:440]
    sector[: len(code)] = code
    struct.pack_into("<I", sector, 440, SIGNATURE)
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


def _pack(output: Path, members: dict[str, bytes | Path]) -> None:
    with output.open("wb") as raw:
        zipped = gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=1, mtime=0)
        with zipped, tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as box:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.mtime = recipe.EPOCH_S
                if isinstance(content, bytes):
                    info.size = len(content)
                    box.addfile(info, io.BytesIO(content))
                else:
                    info.size = content.stat().st_size
                    with content.open("rb") as file:
                        box.addfile(info, file)
