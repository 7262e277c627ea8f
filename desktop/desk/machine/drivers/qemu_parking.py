"""A QEMU machine whose whole state lies on disk: written by a migration into a file, read by one.

``parked.json`` is written last and deleted first: a machine is parked exactly when that file is
there. It holds the arguments that QEMU had, since a state fits only a machine of the same shape.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sys
import time
from typing import Any, Protocol

from desk.errors import DriverError, MachineError
from desk.paths import MachinePaths
from desk.whole_file import replace_file

_FILE_MIGRATION = (8, 2, 0)  # the first QEMU that writes a state into a file by itself
_NO_LIMIT = 1 << 40  # bytes a second; 128 MB/s unless told otherwise
_PATIENCE_S = 600.0
_POLL_S = 0.05
_SLACK_BYTES = 64 << 20
_CONSOLE = "file,id=console,"


class Qmp(Protocol):
    def __call__(self, command: str, **arguments: object) -> Any: ...


class QemuParking:
    """Parks one machine and takes its state up again. The caller starts and ends QEMU."""

    def __init__(self, name: str, paths: MachinePaths, qmp: Qmp) -> None:
        self._name = name
        self._paths = paths
        self._qmp = qmp

    @property
    def is_parked(self) -> bool:
        return self._paths.parked.exists()

    def note_arguments(self, argv: list[str]) -> None:
        """Remember with which arguments QEMU is started; a park needs them."""
        replace_file(self._paths.qemu_arguments, json.dumps(argv).encode())

    def check_can_park(self, resident_bytes: int | None) -> None:
        """Raise ``DriverError`` or ``MachineError`` where this machine cannot be parked now."""
        if not self._paths.qemu_arguments.exists():
            raise DriverError(
                f"machine {self._name} was started by an older Desk and cannot be parked",
                hint=f"`desk machine restart {self._name}` makes it possible.",
            )
        if sys.platform == "win32" and not self._writes_files():
            raise DriverError(
                f"the QEMU of machine {self._name} cannot write its state into a file",
                hint="QEMU 8.2 and newer can on Windows.",
            )
        free = shutil.disk_usage(self._paths.directory).free
        needed = (resident_bytes or 0) + _SLACK_BYTES
        if free < needed:
            raise MachineError(
                f"the state of machine {self._name} needs up to {needed >> 20} MiB, and"
                f" {free >> 20} MiB are free at {self._paths.directory}",
                hint="Make room on that disk, or end containers first.",
            )

    def write_state(self) -> None:
        """Stop the guest and write its state; QEMU may be ended afterwards. Raises ``DriverError``;
        then the guest goes on as if nothing had been."""
        self.discard()
        self._qmp("stop")
        try:
            self._qmp("migrate-set-parameters", **{"max-bandwidth": _NO_LIMIT})
            self._qmp("migrate", uri=self._uri(write=True))
            self._wait_for_migration()
            arguments = json.loads(self._paths.qemu_arguments.read_text("utf-8"))
            replace_file(self._paths.parked, json.dumps({"arguments": arguments}).encode())
        except (DriverError, OSError) as error:
            self.discard()
            self._qmp("cont")
            if isinstance(error, DriverError):
                raise
            raise MachineError(
                f"cannot write {error.filename or self._paths.parked}: {error.strerror}",
                hint="Make room on that disk.",
            ) from error

    def _wait_for_migration(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while (told := self._qmp("query-migrate"))["status"] != "completed":
            failed = told["status"] in ("failed", "cancelled")
            if failed or time.monotonic() >= deadline:
                why = told.get("error-desc") or f"QEMU says {told['status']}"
                with contextlib.suppress(DriverError):
                    self._qmp("migrate_cancel")
                raise DriverError(
                    f"machine {self._name} cannot be parked: {why}",
                    hint=f"It runs on; `desk machine stop {self._name}` stops it.",
                )
            time.sleep(_POLL_S)

    def arguments(self, old_port: int, port: int) -> list[str]:
        """Return the arguments of a QEMU that waits for the state, with another port for SSH where
        the old one is taken. The console's log goes on where it was."""
        try:
            document = json.loads(self._paths.parked.read_text("utf-8"))
            argv = [str(word) for word in document["arguments"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._lost(f"{self._paths.parked} is damaged") from error
        if not self._paths.parked_state.is_file():
            raise self._lost(f"{self._paths.parked_state} is missing")
        moved = [word.replace(f"127.0.0.1:{old_port}-", f"127.0.0.1:{port}-") for word in argv]
        told = [
            f"{word},append=on" if word.startswith(_CONSOLE) and "append=" not in word else word
            for word in moved
        ]
        return [*told, "-incoming", "defer"]

    def read_state(self) -> None:
        """Have the waiting QEMU take the state up and go on. Raises ``DriverError``; the state is
        still there then."""
        try:
            self._qmp("migrate-incoming", uri=self._uri(write=False))
            deadline = time.monotonic() + _PATIENCE_S
            while (status := self._qmp("query-status")["status"]) == "inmigrate":
                if time.monotonic() >= deadline:
                    raise self._lost("QEMU does not come to the end of it")
                time.sleep(_POLL_S)
            if status != "running":
                self._qmp("cont")
        except DriverError as error:
            raise self._lost(error.text) from error

    def go_on(self) -> None:
        """Let a guest go on whose parking was broken off, or that another program stopped."""
        with contextlib.suppress(DriverError):
            if self._qmp("query-status")["status"] in ("paused", "finish-migrate", "postmigrate"):
                with contextlib.suppress(DriverError):
                    self._qmp("migrate_cancel")
                self._qmp("cont")

    def discard(self) -> None:
        """Delete the state; idempotent."""
        self._paths.parked.unlink(missing_ok=True)
        self._paths.parked_state.unlink(missing_ok=True)

    def _lost(self, why: str) -> DriverError:
        return DriverError(
            f"the saved state of machine {self._name} cannot be taken up: {why}",
            hint=f"`desk machine kill {self._name}` gives the state up, as if the machine were"
            " unplugged; the next start boots its disk.",
        )

    def _uri(self, *, write: bool) -> str:
        file = str(self._paths.parked_state)
        if self._writes_files():
            return f"file:{file}"
        return f"exec:cat {'>' if write else '<'}{shlex.quote(file)}"

    def qemu_version(self) -> tuple[int, int, int]:
        """Ask the QEMU that runs. Raises ``DriverError``."""
        found = self._qmp("query-version")["qemu"]
        return found["major"], found["minor"], found["micro"]

    def _writes_files(self) -> bool:
        return self.qemu_version() >= _FILE_MIGRATION
