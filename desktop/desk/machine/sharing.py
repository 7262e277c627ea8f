"""Which of this computer's folders a machine may have, and how: ``share_folder``, ``share_by``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from desk.agent.spec import FolderSharing
from desk.errors import UsageError
from desk.machine.model import MachineSpec
from desk.machine.store import MachineFile
from desk.paths import Home

SHARING_OPTIONS = frozenset({"share_folder"})
"""Driver options of every machine that is reached over SSH."""

DEVICE_OPTIONS = frozenset({"share_by"})
"""Driver options of machines that can have folders as devices (``Features.folder_devices``)."""

AUTO, SFTP, VIRTIOFS = "auto", "sftp", "virtiofs"

_FACT_TAGS = "folder_tags"
DEFAULT = "~"
NONE = "none"
_SECRETS = (".ssh", ".gnupg")


def check_sharing(options: Mapping[str, str]) -> None:
    """Raise ``UsageError`` for a setting that names no folder of this computer, or no way."""
    way = _way(options)
    if way not in (AUTO, SFTP, VIRTIOFS):
        raise UsageError(
            f"share-by cannot be {way!r}",
            hint=f"It is {AUTO}, {SFTP}, or {VIRTIOFS} on a Linux computer that has virtiofsd.",
        )
    for text in _items(options):
        path = _path(text)
        if not path.is_absolute() or not path.is_dir():
            what = "no absolute path" if not path.is_absolute() else "no folder of this computer"
            raise UsageError(
                f"share-folder cannot be {text!r}: that is {what}",
                hint="Give folders with commas between them, :ro behind those that the machine may"
                f" only read, or {NONE}. Without a setting it is your home folder.",
            )


def folder_sharing(spec: MachineSpec, home: Home) -> FolderSharing:
    """Return what the agent of a machine shares.

    What holds keys stays hidden: Desk's own directory always, ``~/.ssh`` and ``~/.gnupg`` unless
    the setting names them or something in them.
    """
    folders = tuple(
        f"{_path(text)}{':ro' if text.endswith(':ro') else ''}" for text in _items(spec.options)
    )
    named = [os.path.realpath(_path(text)) for text in _items(spec.options)]
    secrets = [os.path.realpath(Path("~", name).expanduser()) for name in _SECRETS]
    hidden = [
        secret
        for secret in secrets
        if not any(f"{place}/".startswith(f"{secret}/") for place in named)
    ]
    return FolderSharing(folders, (*hidden, str(home.directory)))


def wants_devices(options: Mapping[str, str]) -> bool:
    """Whether the machine is to have its folders as devices, whatever that costs."""
    return _way(options) == VIRTIOFS


def takes_devices(options: Mapping[str, str]) -> bool:
    """Whether the machine may have its folders as devices: where that costs nothing, at least."""
    return _way(options) != SFTP


def tags_fact(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the fact that keeps the tags of folders that are devices, by their paths there."""
    return {_FACT_TAGS: json.dumps(tags) if tags else ""}


def kept_tags(record: MachineFile) -> dict[str, str]:
    """Return the tags that ``tags_fact`` keeps in a machine's record."""
    tags: dict[str, str] = json.loads(record.get(_FACT_TAGS) or "{}")
    return tags


def _way(options: Mapping[str, str]) -> str:
    return options.get("share_by") or AUTO


def _items(options: Mapping[str, str]) -> list[str]:
    text = options.get("share_folder") or DEFAULT
    return [] if text == NONE else [item for item in text.split(",") if item]


def _path(text: str) -> Path:
    return Path(text.removesuffix(":ro")).expanduser()
