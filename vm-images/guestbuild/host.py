"""What the build needs on this computer, from the list ``host-packages.txt``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from guestbuild.errors import BuildError

LIST = Path(__file__).resolve().parent.parent / "host-packages.txt"
_SYSTEM_PATH = "/usr/sbin:/sbin:/usr/local/sbin"


def required() -> dict[str, str]:
    """Return program: package."""
    lines = [line.split("#")[0].split() for line in LIST.read_text("utf-8").splitlines()]
    is_root = os.geteuid() == 0
    return {
        words[0]: words[1] for words in lines if words and not (is_root and "user" in words[2:])
    }


def extend_path() -> None:
    """Let an ordinary user's PATH find the programs in the sbin directories."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:{_SYSTEM_PATH}"


def missing_packages() -> list[str]:
    """Return the packages of the list whose program is not on the PATH."""
    return sorted({package for program, package in required().items() if not shutil.which(program)})


def check() -> None:
    """Raise ``BuildError`` that names the packages to install."""
    missing = missing_packages()
    if missing:
        raise BuildError(
            f"the build needs {', '.join(missing)}: apt-get install {' '.join(missing)}"
        )
