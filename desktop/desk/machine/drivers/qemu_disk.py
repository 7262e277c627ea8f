"""The data disk of a QEMU machine: a sparse file, which QEMU has open while the machine runs."""

from __future__ import annotations

import os
from pathlib import Path

from desk.errors import MachineError
from desk.machine.drivers.qemu_memory import Qmp
from desk.machine.qemu_command import DATA_NODE

_GIB = 1 << 30


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
