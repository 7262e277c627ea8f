"""What the build needs on this computer, from the list ``host-packages.txt``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from guestbuild import recipe
from guestbuild.errors import BuildError

LIST = Path(__file__).resolve().parent.parent / "host-packages.txt"
_SYSTEM_PATH = "/usr/sbin:/sbin:/usr/local/sbin"


def required(arch: recipe.Architecture, *, for_box: bool) -> dict[str, str]:
    """Return program (or file): package."""
    left_out = set(recipe.ARCHITECTURES)
    if arch.debian != recipe.host_architecture():
        left_out.discard(arch.debian)
    if os.geteuid() == 0:
        left_out.add("user")
    if not for_box:
        left_out.add("box")
    lines = [line.split("#")[0].split() for line in LIST.read_text("utf-8").splitlines()]
    return {words[0]: words[1] for words in lines if words and not left_out & set(words[2:])}


def extend_path() -> None:
    """Let an ordinary user's PATH find the programs in the sbin directories."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:{_SYSTEM_PATH}"


def missing_packages(arch: recipe.Architecture, *, for_box: bool) -> list[str]:
    """Return the packages of the list whose program or file is not here."""
    return sorted(
        {
            package
            for what, package in required(arch, for_box=for_box).items()
            if not (Path(what).exists() if what.startswith("/") else shutil.which(what))
        }
    )


def check(arch: recipe.Architecture, *, for_box: bool = False) -> None:
    """Raise ``BuildError`` that names the packages to install."""
    missing = missing_packages(arch, for_box=for_box)
    if missing:
        raise BuildError(
            f"the build needs {', '.join(missing)}: apt-get install {' '.join(missing)}"
        )
