"""``machine.json``: one machine's specification and facts, versioned, written whole, locked.

A machine exists exactly when its ``machine.json`` does; it is the last file that ``create`` writes
and the first that ``remove`` deletes. A directory without it is debris of an interrupted command.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from desk.errors import Conflict, MachineError, NotFound
from desk.machine.model import MachineSpec
from desk.machine.process import write_whole
from desk.paths import Home, MachinePaths

FORMAT = 1
"""Version of ``machine.json``; raise it with a migration whenever the meaning of a key changes."""

Migration = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: dict[int, Migration] = {}
"""From format N to N + 1. None yet: format 1 is the first."""

_LOCK_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """What ``machine.json`` holds. ``facts`` are the driver's: ports, addresses, identifiers."""

    spec: MachineSpec
    created_at: str  # ISO 8601, UTC
    facts: dict[str, str] = field(default_factory=dict)


class Facts(Protocol):
    """What a driver learned about its machine and wants to find again."""

    def get(self, key: str) -> str:
        """Return the fact, or an empty string."""

    def update(self, values: Mapping[str, str]) -> None:
        """Set facts; they are on disk when this returns, once the machine exists."""


def _staged(file: Path) -> Path:
    return file.with_name(f"{file.name}.new")


class MachineFile:
    """The ``machine.json`` of one machine, and its driver's ``Facts``."""

    def __init__(self, paths: MachinePaths) -> None:
        self._paths = paths
        self._pending: dict[str, str] = {}

    def exists(self) -> bool:
        return self._paths.config.is_file()

    def read(self) -> MachineRecord:
        """Return the record. Raises ``NotFound``, or ``MachineError`` for a damaged file."""
        file, name = self._paths.config, self._paths.directory.name
        try:
            text = file.read_text("utf-8")
        except FileNotFoundError as error:
            raise NotFound(
                f"machine {name} does not exist",
                hint=f"`desk machine create {name}` makes it, `desk machine ls` lists all.",
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(file, name, str(error)) from error
        try:
            document = json.loads(text)
        except ValueError as error:
            raise _damaged(file, name, f"no JSON ({error})") from error
        return record_from(document, file, name)

    def write(self, record: MachineRecord, *, settings: str | None = None) -> None:
        """Write the record with all facts set before it existed, and ``machine.toml``: as
        ``settings``, else with what changes of the specification, and its comments as they are.

        Raises ``SettingsMistake`` for a ``machine.toml`` that is no TOML; nothing changed then.
        """
        text = self._followed(record.spec) if settings is None else settings
        if text is None:
            self._write_record(record, self._paths.config)
            self._pending.clear()
            return
        # The room of both is taken first: a rename needs none. Where a crash comes in between, the
        # settings are those of a file that was edited by hand: the next start takes them up.
        new_settings, new_config = _staged(self._paths.settings), _staged(self._paths.config)
        try:
            write_whole(new_settings, text)
            self._write_record(record, new_config)
            new_settings.replace(self._paths.settings)
            new_config.replace(self._paths.config)
        finally:
            new_settings.unlink(missing_ok=True)
            new_config.unlink(missing_ok=True)
        self._pending.clear()

    def _followed(self, spec: MachineSpec) -> str | None:
        """Return ``machine.toml`` for another specification; ``None`` where it stays."""
        if not self._paths.settings.exists() or not self.exists():
            return None
        before = self.read().spec
        if before == spec:  # as with each new fact
            return None
        from desk.machine.settings_file import changes, follow, read_text

        if not changes(before, spec):  # but for what is no setting, as the name
            return None
        text = read_text(self._paths.settings)
        followed = follow(text, self._paths.settings, before, spec)
        return followed if followed != text else None

    def _write_record(self, record: MachineRecord, file: Path) -> None:
        facts = {**record.facts, **self._pending}
        document = {
            "format": FORMAT,
            **asdict(record.spec),
            "created_at": record.created_at,
            "facts": facts,
        }
        write_whole(file, json.dumps(document, indent=2, sort_keys=True) + "\n")

    def get(self, key: str) -> str:
        """Return a fact of the driver, or an empty string."""
        if key in self._pending or not self.exists():
            return self._pending.get(key, "")
        return self.read().facts.get(key, "")

    def update(self, values: Mapping[str, str]) -> None:
        """Set facts of the driver; kept in memory until the machine exists."""
        self._pending.update(values)
        if self.exists():
            self.write(self.read())


def record_from(
    document: object,
    file: Path,
    name: str,
    *,
    current: int = FORMAT,
    migrations: Mapping[int, Migration] = MIGRATIONS,
) -> MachineRecord:
    """Return the record in a parsed ``machine.json``, brought to the ``current`` format first."""
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise _damaged(file, name, "no format number")
    if document["format"] > current:
        raise MachineError(
            f"{file} has format {document['format']}, this Desk knows up to {current}",
            hint="A newer Desk made this machine: update Desk.",
        )
    while document["format"] < current:
        number = document["format"]
        if number not in migrations:
            raise _damaged(file, name, f"unknown format {number}")
        document = {**migrations[number](document), "format": number + 1}
    return MachineRecord(
        spec=_spec_from(document, file, name),
        created_at=str(document.get("created_at", "")),
        facts=_texts(document.get("facts", {}), "facts", file, name),
    )


def _spec_from(document: dict[str, Any], file: Path, name: str) -> MachineSpec:
    kinds: dict[str, type] = {
        "name": str,
        "driver": str,
        "memory_mib": int,
        "cpus": int,
        "disk_gib": int,
        "image": str,
    }
    values: dict[str, Any] = {}
    for entry in fields(MachineSpec):
        if entry.name == "options":
            continue
        value = document.get(entry.name)
        if not isinstance(value, kinds[entry.name]) or isinstance(value, bool):
            raise _damaged(file, name, f"{entry.name} is missing or wrong")
        values[entry.name] = value
    options = _texts(document.get("options", {}), "options", file, name)
    return MachineSpec(**values, options=options)


def _texts(value: object, key: str, file: Path, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _damaged(file, name, f"{key} is wrong")
    return dict(value)


def _damaged(file: Path, name: str, why: str) -> MachineError:
    return MachineError(
        f"{file} is damaged: {why}",
        hint=f"Restore the file, or `desk machine rm -f {name}` removes the machine with its data.",
    )


class MachineStore:
    """All machines below one ``Home``."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def names(self) -> list[str]:
        """Return the names of all machines, damaged ones included."""
        try:
            entries = list(self.home.machines.iterdir())
        except FileNotFoundError:
            return []
        return sorted(e.name for e in entries if self.home.machine(e.name).config.is_file())

    def file(self, name: str) -> MachineFile:
        return MachineFile(self.home.machine(name))

    def make_home(self) -> None:
        """Make the directories of ``Home``, readable by their owner only."""
        for directory in (self.home.directory, self.home.machines, self.home.images):
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise MachineError(
                    f"cannot make {directory}: {error.strerror}",
                    hint="Set DESK_HOME to a directory that you may write to.",
                ) from error

    @contextlib.contextmanager
    def locked(self, name: str, operation: str, *, wait_s: float) -> Iterator[None]:
        """Hold the machine's lock: one command at a time changes a machine.

        ``operation`` ("starting", …) is what ``busy_with`` tells others meanwhile. Raises
        ``Conflict`` when another command still holds the lock after ``wait_s`` seconds. The
        kernel drops the lock with the process, so a killed command leaves none behind.
        """
        self.make_home()
        lock = self.home.machine(name).lock
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise MachineError(
                f"cannot open {lock}: {error.strerror}",
                hint="Set DESK_HOME to a directory that you may write to.",
            ) from error
        try:
            _wait_for_lock(descriptor, name, wait_s)
            _write_operation(descriptor, operation)
            yield
        finally:
            os.close(descriptor)

    def now(self, name: str, operation: str) -> None:
        """Tell others what the holder of the machine's lock, the caller, does from now on."""
        descriptor = os.open(self.home.machine(name).lock, os.O_RDWR)
        try:
            _write_operation(descriptor, operation)
        finally:
            os.close(descriptor)

    def busy_with(self, name: str) -> str:
        """Return what another command does with the machine now; empty where none does."""
        try:
            descriptor = os.open(self.home.machine(name).lock, os.O_RDWR)
        except OSError:
            return ""
        try:
            if _try_lock(descriptor):
                return ""
            return os.read(descriptor, 64).decode("ascii", "replace").strip()
        except OSError:
            return ""  # Windows keeps others from reading a locked file
        finally:
            os.close(descriptor)


def _write_operation(descriptor: int, operation: str) -> None:
    # Only a word for others to read: a full disk must not keep a machine from being removed.
    with contextlib.suppress(OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{operation}\n".encode("ascii"))


def _wait_for_lock(descriptor: int, name: str, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while not _try_lock(descriptor):
        if time.monotonic() >= deadline:
            raise Conflict(
                f"another command is working on machine {name}",
                hint="Wait until it has ended, then run this one again.",
            )
        time.sleep(_LOCK_POLL_S)


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
