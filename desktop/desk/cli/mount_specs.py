"""``-v`` and ``--mount``, parsed into what the Engine API takes.

The forms are those of Docker's command line reference. Each function raises ``UsageError`` that
quotes the value.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from desk.cli.specs import JsonObject, fields
from desk.errors import UsageError
from desk.sizes import parse_size

_WINDOWS_PATH = re.compile(r"[a-zA-Z]:[\\/]")


class Volume(NamedTuple):
    """One ``-v``: ``source`` is empty for an anonymous volume, a path for a host folder."""

    source: str
    target: str
    options: str
    is_path: bool

    def bind(self) -> str:
        return ":".join(part for part in (self.source, self.target, self.options) if part)


def parse_volume(text: str) -> Volume:
    """Parse ``[SOURCE:]TARGET[:OPTIONS]``; relative and ``~`` sources become absolute."""
    drive, rest = "", text
    if _WINDOWS_PATH.match(text) and (sys.platform == "win32" or text.count(":") > 1):
        drive, rest = text[:2], text[2:]
    parts = rest.split(":")
    if len(parts) > 3 or not all(parts):
        raise UsageError(
            f"invalid volume {text!r}",
            hint="Write -v NAME:/path/in/container or -v /host/path:/path/in/container.",
        )
    if len(parts) == 1:
        source, target, options = "", drive + parts[0], ""
    else:
        source, target = drive + parts[0], parts[1]
        options = parts[2] if len(parts) > 2 else ""
    if source and not target.startswith("/"):  # the engine lets a lone one count from "/"
        raise UsageError(
            f"invalid volume {text!r}: {target!r} is not an absolute path in the container"
        )
    is_path = _is_path(source)
    return Volume(absolute_source(source) if is_path else source, target, options, is_path)


def _is_path(source: str) -> bool:
    return source.startswith(("/", ".", "~")) or bool(_WINDOWS_PATH.match(source))


def absolute_source(source: str) -> str:
    """Return a host path in full: ``~`` is the home directory, ``./x`` is relative to here."""
    if source.startswith("/") and sys.platform != "win32":
        return os.path.normpath(source)
    return str(Path(os.path.normpath(Path(source).expanduser().absolute())))


def _flag(text: str | None, key: str, whole: str) -> bool:
    if text is None or text.lower() in ("1", "true"):
        return True
    if text.lower() in ("0", "false"):
        return False
    raise UsageError(f"invalid value {text!r} for {key} in --mount {whole!r}")


def parse_mount(text: str) -> JsonObject:
    """Parse ``type=bind,source=…,target=…`` into the API's ``Mount``."""
    mount: JsonObject = {"Type": "volume"}
    bind: JsonObject = {}
    volume: JsonObject = {}
    tmpfs: JsonObject = {}
    for item in fields(text):
        key, separator, value = item.partition("=")
        key = key.strip().lower()
        given = value if separator else None
        if key in ("readonly", "ro"):
            mount["ReadOnly"] = _flag(given, key, text)
        elif key == "volume-nocopy":
            volume["NoCopy"] = _flag(given, key, text)
        elif key == "bind-nonrecursive":
            bind["NonRecursive"] = _flag(given, key, text)
        elif not separator:
            raise UsageError(f"invalid field {item!r} in --mount {text!r}: it has no value")
        elif key == "bind-recursive":
            bind.update(_bind_recursive(value, text))
        else:
            _mount_field(key, value, mount, bind, volume, tmpfs, text)
    for name, options in (
        ("BindOptions", bind),
        ("VolumeOptions", volume),
        ("TmpfsOptions", tmpfs),
    ):
        if options:
            mount[name] = options
    _check_mount(mount, text)
    return mount


def _mount_field(
    key: str,
    value: str,
    mount: JsonObject,
    bind: JsonObject,
    volume: JsonObject,
    tmpfs: JsonObject,
    whole: str,
) -> None:
    if key == "type":
        mount["Type"] = value.lower()
    elif key in ("source", "src"):
        mount["Source"] = value
    elif key in ("target", "dst", "destination"):
        mount["Target"] = value
    elif key == "consistency":
        mount["Consistency"] = value.lower()
    elif key == "bind-propagation":
        bind["Propagation"] = value.lower()
    elif key == "volume-subpath":
        volume["Subpath"] = value
    elif key == "volume-driver":
        volume.setdefault("DriverConfig", {})["Name"] = value
    elif key == "volume-opt":
        name, _, option = value.partition("=")
        volume.setdefault("DriverConfig", {}).setdefault("Options", {})[name] = option
    elif key == "volume-label":
        name, _, label = value.partition("=")
        volume.setdefault("Labels", {})[name] = label
    elif key == "tmpfs-size":
        tmpfs["SizeBytes"] = parse_size(value, what="tmpfs-size")
    elif key == "tmpfs-mode":
        if not re.fullmatch(r"[0-7]+", value):
            raise UsageError(f"invalid tmpfs-mode {value!r} in --mount {whole!r}: write 1777")
        tmpfs["Mode"] = int(value, 8)
    else:
        raise UsageError(f"unknown field {key!r} in --mount {whole!r}")


def _bind_recursive(value: str, whole: str) -> JsonObject:
    choices: dict[str, JsonObject] = {
        "enabled": {},
        "disabled": {"NonRecursive": True},
        "writable": {"ReadOnlyNonRecursive": True},
        "readonly": {"ReadOnlyForceRecursive": True},
    }
    if value not in choices:
        raise UsageError(
            f"invalid bind-recursive {value!r} in --mount {whole!r}",
            hint="It is enabled, disabled, writable or readonly.",
        )
    return choices[value]


def _check_mount(mount: JsonObject, text: str) -> None:
    kind = mount["Type"]
    if kind not in ("bind", "volume", "tmpfs"):
        raise UsageError(
            f"invalid type {kind!r} in --mount {text!r}", hint="It is bind, volume or tmpfs."
        )
    if not mount.get("Target"):
        raise UsageError(f"--mount {text!r} names no target", hint="Add target=/path.")
    for name, owner in (("Bind", "bind"), ("Volume", "volume"), ("Tmpfs", "tmpfs")):
        if f"{name}Options" in mount and kind != owner:
            raise UsageError(f"--mount {text!r} mixes {owner} options with type {kind}")
    recursive = mount.get("BindOptions", {})
    if recursive.get("ReadOnlyForceRecursive") and not (
        mount.get("ReadOnly") and recursive.get("Propagation") == "rprivate"
    ):
        raise UsageError(
            f"bind-recursive=readonly in --mount {text!r} needs two other fields",
            hint="Add readonly,bind-propagation=rprivate.",
        )
    if kind == "bind":
        if not mount.get("Source"):
            raise UsageError(f"--mount {text!r} names no source", hint="Add source=/path.")
        mount["Source"] = absolute_source(mount["Source"])
