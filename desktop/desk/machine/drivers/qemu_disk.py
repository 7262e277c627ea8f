"""The data disk of a QEMU machine: a sparse file, which QEMU has open while the machine runs."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from desk.errors import MachineError
from desk.machine.drivers.qemu_memory import Qmp
from desk.machine.qemu_command import DATA_NODE

_GIB = 1 << 30
FACT_FILE_SYSTEM = "file_system"
"""Which file system the machine's disk had last, as ``file_system_id`` tells it."""

# ext4's superblock (fs/ext4/ext4.h, struct ext4_super_block): where it is, its magic, its UUID.
_HEAD_BYTES = 4096  # what the guest looks at to see whether a disk is new
_SUPERBLOCK_AT, _SUPERBLOCK_BYTES = 1024, 1024
_MAGIC_AT, _MAGIC = 0x38, b"\x53\xef"
_UUID_AT, _UUID_BYTES = 0x68, 16


def file_system_id(file: Path) -> str:
    """Return the UUID of the file system that was made on a disk at its first boot; empty where
    there is none, or a damaged one. Copies of the disk have the same. Raises ``MachineError``."""
    block = _read(file)[_SUPERBLOCK_AT : _SUPERBLOCK_AT + _SUPERBLOCK_BYTES]
    if block[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        return ""
    return str(uuid.UUID(bytes=block[_UUID_AT : _UUID_AT + _UUID_BYTES]))


def is_new(file: Path) -> bool:
    """Whether the guest would make a file system on a disk, as on that of a new machine. Raises
    ``MachineError``."""
    return not any(_read(file))


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as disk:
            return disk.read(_HEAD_BYTES)
    except OSError as error:
        raise MachineError(
            f"{file} cannot be read: {error.strerror}",
            hint="Give yourself the permission to read and write it, or restore it from a backup.",
        ) from error


class QemuDisk:
    """Implements ``DataDisk``. ``qmp`` is ``None`` where the machine does not run."""

    def __init__(self, file: Path, qmp: Qmp | None) -> None:
        self._file = file
        self._qmp = qmp

    def grow(self, size_bytes: int) -> None:
        """QEMU tells a running guest of the new size, and makes the file longer itself."""
        if self._file.stat().st_size >= size_bytes:
            return
        if self._qmp is not None:
            self._qmp("block_resize", **{"node-name": DATA_NODE}, size=size_bytes)
            return
        try:
            os.truncate(self._file, size_bytes)
        except OSError as error:
            raise MachineError(
                f"{self._file} cannot have {size_bytes / _GIB:g} GiB: {error.strerror}",
                hint="Give it less, or set DESK_HOME to a directory on another disk.",
            ) from error
