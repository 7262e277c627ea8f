"""A whole machine as one file, to be kept or carried to another computer.

A tar, compressed by its name's ending, with two members: ``machine.json`` and ``disk``.
``machine.json`` has ``format``, ``spec``, ``image`` (the guest image's identity), ``disk_bytes``
(the disk's size), ``extents`` ([offset, length] of each piece with data) and ``sha256``; ``disk``
is these pieces one after the other, so that a disk of 60 GB takes what is in it. Keys, ports and
addresses are not in it: the machine that is made of it gets its own.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import IO, Any

from desk.compression import compressed
from desk.errors import ImageError, MachineError
from desk.machine.copies import MachineCopies
from desk.machine.driver import Progress
from desk.machine.images import ImageStore
from desk.machine.manager import Manager
from desk.machine.model import MachineSpec, check_name
from desk.machine.sparse import PIECE_BYTES, extents, make_sparse, pieces

FORMAT = 1
_COMPRESSED = (".gz", ".tgz", ".xz")
_MOST_HEAD_BYTES = 64 << 20
_LOCAL_OPTIONS = frozenset({"ssh_port", "qemu", "accelerator", "power_source", "share_by"})
"""Options that say something of the computer, not of the machine."""


class MachineArchives:
    """Writes and reads machines as files."""

    def __init__(self, manager: Manager, copies: MachineCopies) -> None:
        self._manager = manager
        self._copies = copies

    def write(self, name: str, file: Path, progress: Progress) -> None:
        """Write the machine to a file, which is whole or not there. A running machine stands
        still while its disk is copied."""
        unfinished = file.with_name(f".{file.name}.unfinished")
        try:
            with self._copies.still_disk(name) as (machine, disk):
                progress(f"Writing machine {name} to {file}")
                spec = machine.record.spec
                options = {k: v for k, v in spec.options.items() if k not in _LOCAL_OPTIONS}
                head = {
                    "format": FORMAT,
                    "spec": asdict(replace(spec, image="", options=options)),
                    "image": machine.record.facts.get("image", ""),
                    "disk_bytes": disk.stat().st_size,
                    "extents": list(extents(disk)),
                }
                with _writing(unfinished, file) as archive:
                    _write_members(archive, head, disk)
            unfinished.replace(file)
        except (OSError, tarfile.TarError) as error:
            raise MachineError(
                f"cannot write {file}: {getattr(error, 'strerror', '') or error}",
                hint="Make room on that disk, or choose another file.",
            ) from error
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def read(self, file: Path, name: str, progress: Progress) -> str:
        """Make a machine of such a file, stopped; return its name. Raises ``ImageError`` for a
        file that is damaged or none of these, ``Conflict``; then nothing is left."""
        with _reading(file) as archive:
            head = _head(archive, file)
            spec = _spec(head, file)
            spec = replace(spec, name=check_name(name or spec.name))
            # Without the very image the newest one does: the disk has nothing of it.
            installed = ImageStore(self._manager.home).installed()
            has_image = head["image"] in {image.manifest.identity for image in installed}
            facts = {"image": head["image"]} if has_image else {}

            def fill(disk: Path) -> None:
                progress(f"Reading the disk of machine {spec.name}")
                disk.unlink(missing_ok=True)
                make_sparse(disk, head["disk_bytes"])
                _read_disk(archive, head, disk, file)

            self._manager.create(spec, progress, disk=fill, facts=facts)
        return spec.name


def _write_members(archive: tarfile.TarFile, head: dict[str, Any], disk: Path) -> None:
    # The checksum stands before what it is of: the disk is read twice rather than kept.
    digest = hashlib.sha256()
    with disk.open("rb") as stream:
        for offset, length in head["extents"]:
            for _position, data in pieces(stream, offset, length):
                digest.update(data)
        text = json.dumps({**head, "sha256": digest.hexdigest()}).encode()
        entry = tarfile.TarInfo("machine.json")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
        entry = tarfile.TarInfo("disk")
        entry.size = sum(length for _offset, length in head["extents"])
        archive.addfile(entry, _Extents(stream, head["extents"]))


class _Extents(io.RawIOBase):
    """The pieces of a disk that hold data, as one stream."""

    def __init__(self, stream: IO[bytes], found: list[tuple[int, int]]) -> None:
        self._pieces = (data for each in found for _at, data in pieces(stream, *each))
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            data = next(self._pieces, b"")
            if not data:
                break
            self._rest += data
        wanted = len(self._rest) if size < 0 else size
        answer, self._rest = self._rest[:wanted], self._rest[wanted:]
        return answer


def _head(archive: tarfile.TarFile, file: Path) -> dict[str, Any]:
    entry = archive.next()
    content = archive.extractfile(entry) if entry is not None else None
    if entry is None or entry.name != "machine.json" or content is None:
        raise _no_archive(file, "it does not begin with machine.json")
    if entry.size > _MOST_HEAD_BYTES:
        raise _no_archive(file, "its machine.json is too large")
    try:
        head = json.loads(content.read())
    except ValueError as error:
        raise _no_archive(file, "its machine.json is no JSON") from error
    if not isinstance(head, dict) or not isinstance(head.get("format"), int):
        raise _no_archive(file, "it has no format number")
    if head["format"] > FORMAT:
        raise ImageError(
            f"{file} has format {head['format']}, this Desk knows up to {FORMAT}",
            hint="A newer Desk wrote it: update Desk.",
        )
    if not _is_sound(head):
        raise _no_archive(file, "its machine.json is not sound")
    return head


def _is_sound(head: dict[str, Any]) -> bool:
    """Whether the disk that is described can be: extents in order and within its size."""
    size, found = head.get("disk_bytes"), head.get("extents")
    if not isinstance(size, int) or not isinstance(found, list):
        return False
    if not isinstance(head.get("sha256"), str) or not isinstance(head.get("image"), str):
        return False
    end = 0
    for extent in found:
        if not (isinstance(extent, list) and len(extent) == 2):
            return False
        if not all(isinstance(number, int) for number in extent):
            return False
        offset, length = extent
        if offset < end or length <= 0:
            return False
        end = offset + length
    return end <= size <= 1 << 50


def _spec(head: dict[str, Any], file: Path) -> MachineSpec:
    values = head.get("spec")
    names = {entry.name: entry.type for entry in fields(MachineSpec)}
    kinds: dict[str, type] = {"str": str, "int": int, "dict[str, str]": dict}
    if not isinstance(values, dict) or values.keys() != names.keys():
        raise _no_archive(file, "it does not say what the machine is")
    for name, value in values.items():
        if not isinstance(value, kinds[str(names[name])]) or isinstance(value, bool):
            raise _no_archive(file, f"its {name} is wrong")
    options = values["options"]
    if not all(isinstance(text, str) for pair in options.items() for text in pair):
        raise _no_archive(file, "its options are wrong")
    return MachineSpec(**values)


def _read_disk(archive: tarfile.TarFile, head: dict[str, Any], disk: Path, file: Path) -> None:
    entry = archive.next()
    content = archive.extractfile(entry) if entry is not None else None
    if entry is None or entry.name != "disk" or content is None:
        raise _no_archive(file, "there is no disk in it")
    digest = hashlib.sha256()
    try:
        with disk.open("r+b") as target:
            for offset, length in head["extents"]:
                target.seek(offset)
                left = length
                while left:
                    data = content.read(min(PIECE_BYTES, left))
                    if not data:
                        raise _no_archive(file, "it is cut off")
                    digest.update(data)
                    target.write(data)
                    left -= len(data)
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise _no_archive(file, str(error)) from error
        raise MachineError(
            f"cannot write {disk}: {error.strerror or error}",
            hint="Make room on that disk, or set DESK_HOME to a directory on another one.",
        ) from error
    if digest.hexdigest() != head["sha256"]:
        raise _no_archive(file, "its checksum is another one")


@contextlib.contextmanager
def _writing(file: Path, named: Path) -> Iterator[tarfile.TarFile]:
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(file.open("wb"))
        # Only what can be read again: tarfile knows no Zstandard before Python 3.14.
        stream = stack.enter_context(
            compressed(raw, named.name if named.suffix in _COMPRESSED else "")
        )
        yield stack.enter_context(tarfile.open(fileobj=stream, mode="w|"))


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(file, mode="r|*") as archive:
            yield archive
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise _no_archive(file, "it is cut off or damaged") from error
    except FileNotFoundError as error:
        if error.filename == str(file):
            raise ImageError(f"{file} does not exist", hint="Give the name of the file.") from error
        raise
    except OSError as error:
        raise ImageError(f"cannot read {file}: {error.strerror or error}") from error


def _no_archive(file: Path, why: str) -> ImageError:
    return ImageError(
        f"{file} is no machine that `desk machine export` wrote, or it is damaged: {why}",
        hint="Get the file again.",
    )
