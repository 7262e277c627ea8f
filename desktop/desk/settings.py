"""``settings.json``: what a person chose, versioned, validated by name, written whole.

Unknown keys are refused with the nearest known one: a setting that is silently ignored is worse
than an error. The file is optional; without it everything has its default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from desk.errors import DeskError
from desk.whole_file import replace_file

FORMAT = 1
"""Version of the file; raise it with a migration whenever the meaning of a key changes."""

Migration = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: dict[int, Migration] = {}
"""From format N to N + 1. None yet: format 1 is the first."""

DEFAULT_MACHINE = "default"


class SettingsError(DeskError):
    """``settings.json`` cannot be read, written, or says something that cannot be."""


class MachineDefaults(NamedTuple):
    """What a new machine is where its command says nothing else."""

    driver: str = "qemu"
    memory_mib: int = 2048
    cpus: int = 2
    disk_gib: int = 60
    image: str = ""  # path or URL#sha256=… of a guest image; empty: the installed one


class Settings(NamedTuple):
    """Everything in ``settings.json``. ``engine_host`` is an address in ``DOCKER_HOST``'s form
    that replaces the machine's engine when it is set."""

    active_machine: str = DEFAULT_MACHINE
    engine_host: str = ""
    defaults: MachineDefaults = MachineDefaults()

    def with_active_machine(self, name: str) -> Settings:
        return self._replace(active_machine=name)


def load(file: Path) -> Settings:
    """Return the settings in ``file``, the defaults where there is none; ``SettingsError``."""
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(file, str(getattr(error, "strerror", "") or error)) from error
    try:
        document = json.loads(text)
    except ValueError as error:
        raise _invalid(file, f"no JSON ({error})") from error
    return parse(document, file)


def parse(
    document: object,
    file: Path,
    *,
    current: int = FORMAT,
    migrations: Mapping[int, Migration] = MIGRATIONS,
) -> Settings:
    """Return the settings in a parsed file, brought to the ``current`` format first."""
    if not isinstance(document, dict):
        raise _invalid(file, "not a JSON object")
    number = document.pop("format", None)
    if not isinstance(number, int) or isinstance(number, bool):
        raise _invalid(file, "no format number")
    if number > current:
        raise SettingsError(
            f"{file} has format {number}, this Desk knows up to {current}",
            hint="A newer Desk wrote it: update Desk, or move the file away.",
        )
    while number < current:
        if number not in migrations:
            raise _invalid(file, f"unknown format {number}")
        document = migrations[number](document)
        number += 1
    values = _checked(document, Settings(), file, "")
    if "defaults" in values:
        inner = _checked(values["defaults"], MachineDefaults(), file, "defaults.")
        values["defaults"] = MachineDefaults(**inner)
    return Settings(**values)


def save(file: Path, settings: Settings) -> None:
    """Write the settings; readers see the old file or the new one. ``SettingsError``."""
    document = settings._asdict() | {"defaults": settings.defaults._asdict()}
    text = json.dumps({"format": FORMAT, **document}, indent=2) + "\n"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(file, text.encode())
    except OSError as error:
        raise SettingsError(
            f"cannot write {file}: {error.strerror}",
            hint="Set DESK_HOME to a directory that you may write to.",
        ) from error


def _checked(
    document: object, known: Settings | MachineDefaults, file: Path, prefix: str
) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise _invalid(file, f"{prefix.rstrip('.')} is not a JSON object")
    names = known._fields
    for key, value in document.items():
        if key not in names:
            raise _unknown(file, f"{prefix}{key}", [f"{prefix}{name}" for name in names])
        default = getattr(known, key)
        if isinstance(default, MachineDefaults):
            continue
        kind = type(default)
        if not isinstance(value, kind) or isinstance(value, bool):
            wanted = "a whole number" if kind is int else "a text"
            raise _invalid(file, f"{prefix}{key} is {json.dumps(value)}, not {wanted}")
        if isinstance(value, int) and value < 1:
            raise _invalid(file, f"{prefix}{key} is {value}; it must be 1 or more")
    return dict(document)


def _unknown(file: Path, key: str, names: Sequence[str]) -> SettingsError:
    from difflib import get_close_matches

    nearest = get_close_matches(key, names, 1)
    hint = f"Did you mean {nearest[0]}?" if nearest else f"Known: {', '.join(names)}."
    return SettingsError(f"{file}: unknown setting {key}", hint=hint)


def _invalid(file: Path, why: str) -> SettingsError:
    return SettingsError(f"{file}: {why}", hint="Correct the file, or move it away.")
