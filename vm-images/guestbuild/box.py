"""Packs the guest image as a Vagrant box: the disk in the provider's format, and what describes it.

A provider's texts are in its directory of ``boxes/``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from guestbuild import box_disk, engine, recipe
from guestbuild.errors import BuildError
from guestbuild.progress import run, step

BOXES = engine.PROJECT / "vm-images" / "boxes"
_GIB = 1 << 30

Members = dict[str, bytes | Path]


@dataclass(frozen=True, slots=True)
class Provider:
    """How one provider wants its box. ``disk`` is the disk's file in the box, ``texts`` add to it
    what describes the disk, from the provider's name, the file and the disk's size in bytes.

    A disk has ``disk_gib`` where the provider cannot make it larger by itself; else it is as small
    as its content.
    """

    disk: str
    format: tuple[str, ...]
    texts: Callable[[str, Path, int], Members]
    disk_gib: int = 0


def _libvirt(name: str, _disk: Path, size_bytes: int) -> Members:
    metadata = _metadata(name)
    metadata["virtual_size"] = -(-size_bytes // _GIB)
    return {"metadata.json": _json(metadata)}


def _virtualbox(name: str, disk: Path, size_bytes: int) -> Members:
    description = Template((BOXES / name / "box.ovf").read_text("utf-8")).substitute(
        file_bytes=disk.stat().st_size, capacity_bytes=size_bytes
    )
    return {"metadata.json": _json(_metadata(name)), "box.ovf": description.encode()}


def _hyperv(name: str, _disk: Path, _size_bytes: int) -> Members:
    machine = "Virtual Machines/box.xml"
    return {
        "metadata.json": _json(_metadata(name)),
        machine: (BOXES / name / machine).read_bytes(),
    }


PROVIDERS = {
    "libvirt": Provider("box.img", ("qcow2",), _libvirt),
    "virtualbox": Provider(
        "box.vmdk", ("vmdk", "-o", "subformat=streamOptimized"), _virtualbox, disk_gib=20
    ),
    "hyperv": Provider(
        "Virtual Hard Disks/box.vhdx", ("vhdx", "-o", "subformat=dynamic"), _hyperv, disk_gib=20
    ),
}


def make(name: str, image: Path, output: Path) -> None:
    """Write the box of the provider ``name`` for the built ``image``.

    Nothing is done where it is up to date. Raises ``BuildError``.
    """
    manifest = json.loads((image / "manifest.json").read_text("utf-8"))
    key = _input_key(name, manifest)
    stamp = output.with_name(f"{output.name}.input")
    if output.is_file() and stamp.is_file() and stamp.read_text("ascii") == key:
        return
    if manifest["arch"] != "amd64":
        raise BuildError(f"boxes are made for amd64 only, this image is for {manifest['arch']}")
    provider = PROVIDERS[name]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as directory:
        scratch = Path(directory)
        with step("Making the box's disk"):
            raw, disk = scratch / "disk.raw", scratch / "disk"
            size_bytes = box_disk.make(image, manifest, raw, scratch, provider.disk_gib * _GIB)
            run(
                ["qemu-img", "convert", "-f", "raw", "-O", *provider.format, raw, disk],
                what="converting the box's disk",
            )
        with step(f"Packing {output.name}"):
            members = provider.texts(name, disk, size_bytes)
            members["Vagrantfile"] = (BOXES / name / "Vagrantfile").read_bytes()
            members[provider.disk] = disk
            partial = scratch / "box"
            _pack(partial, members)
        partial.replace(output)
        stamp.write_text(key, "ascii")


def _input_key(name: str, manifest: dict[str, Any]) -> str:
    digest = hashlib.sha256(str(manifest["input"]).encode())
    for path in sorted(path for path in (BOXES / name).rglob("*") if path.is_file()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _metadata(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((BOXES / name / "metadata.json").read_text("utf-8"))
    return content


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _pack(output: Path, members: Members) -> None:
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
