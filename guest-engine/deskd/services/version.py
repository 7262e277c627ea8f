"""What the engine says when it is asked who it is: ``SystemVersion``.

Imports next to nothing, because a starting engine answers it before its other modules are there.
"""

from __future__ import annotations

import os
import sys

from deskd import __version__

TYPE_CHECKING = False  # known to type checkers; see deskd.record
if TYPE_CHECKING:
    from typing import Any

API_VERSION = (1, 47)
MIN_API_VERSION = (1, 24)
NAME = "Desk Engine"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def version_text(version: tuple[int, int]) -> str:
    """Write a version as ``1.47``."""
    return f"{version[0]}.{version[1]}"


def version_document() -> dict[str, Any]:
    """Return ``SystemVersion``."""
    system = os.uname()
    details = {
        "ApiVersion": version_text(API_VERSION),
        "MinAPIVersion": version_text(MIN_API_VERSION),
        "Arch": _ARCHITECTURES.get(system.machine, system.machine),
        "Os": "linux",
        "KernelVersion": system.release,
        "Experimental": "false",
        "GitCommit": "",
        "BuildTime": "",
        "GoVersion": f"none (Python {sys.version.split()[0]})",
    }
    return {
        "Platform": {"Name": NAME},
        "Components": [
            {"Name": "Engine", "Version": __version__, "Details": details},
            {
                "Name": "kernel",
                "Version": system.release,
                "Details": {"OperatingSystem": operating_system()},
            },
        ],
        "Version": __version__,
        **{key: value for key, value in details.items() if key != "Experimental"},
    }


def operating_system() -> str:
    """Return the name of the machine's operating system."""
    return os_release().get("PRETTY_NAME", "Linux")


def os_release() -> dict[str, str]:
    """Read os-release(5). (``platform`` can do it too and costs start-up time.)"""
    values = {}
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(path, encoding="utf-8") as file:
                for line in file:
                    name, equals, value = line.strip().partition("=")
                    if equals and not name.startswith("#"):
                        values[name] = value.strip("\"'")
            break
        except FileNotFoundError:
            continue
    return values
