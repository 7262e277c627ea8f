"""Paths of this computer and what they are called in the machine. Pure text, no file is looked at.

POSIX paths are the same on both sides. ``C:\\Users\\me`` of Windows is ``/c/Users/me`` in the
machine, as docker-machine and boot2docker had it.
"""

from __future__ import annotations

import ntpath
import posixpath
import re

_DRIVE = re.compile(r"(?P<drive>[A-Za-z]):(?:[\\/]|\Z)")
_IN_MACHINE = re.compile(r"/(?P<drive>[A-Za-z])(?:/|\Z)")


def in_machine(path: str, *, windows: bool) -> str:
    """Return the machine's name of this computer's absolute ``path``; empty for what is none.

    Windows' own spellings are taken, with either slash, and the machine's as well.
    """
    if not windows:
        return posixpath.normpath(path) if path.startswith("/") else ""
    found = _DRIVE.match(path)
    if found is not None:
        rest = ntpath.normpath("\\" + path[2:].lstrip("\\/")).replace("\\", "/")
        return f"/{found['drive'].lower()}{rest}".rstrip("/")
    found = _IN_MACHINE.match(path)
    if found is None:
        return ""
    return f"/{found['drive'].lower()}{posixpath.normpath('/' + path[2:].lstrip('/'))}".rstrip("/")


def on_host(path: str, *, windows: bool) -> str:
    """Return this computer's name of the machine's ``path``; empty for what has none."""
    if not windows:
        return posixpath.normpath(path) if path.startswith("/") else ""
    named = in_machine(path, windows=True)
    if not named:
        return ""
    drive, rest = named[1], named[2:].replace("/", "\\")
    return f"{drive.upper()}:{rest or chr(92)}"


def is_below(path: str, root: str) -> bool:
    """Tell whether the machine's ``path`` is ``root`` or in it."""
    return path == root or root == "/" or path.startswith(root.rstrip("/") + "/")
