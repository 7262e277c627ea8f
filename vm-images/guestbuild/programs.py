"""Running the guest's programs here: through the guest's own loader, and emulated where this
computer has another processor."""

from __future__ import annotations

import shutil
from pathlib import Path

from guestbuild import recipe
from guestbuild.errors import BuildError


def emulator(arch: recipe.Architecture) -> list[str]:
    """Return the words before a static program of the guest; none on a computer of its kind."""
    if arch.debian == recipe.host_architecture():
        return []
    name = f"qemu-{arch.triplet.split('-')[0]}-static"
    found = shutil.which(name)
    if found is None:
        raise BuildError(
            f"building for {arch.debian} needs {name}: apt-get install qemu-user-static"
        )
    return [found]


def guest_python(arch: recipe.Architecture, tree: Path) -> list[str]:
    """Return how to run the guest's Python."""
    return guest_program(arch, tree, f"usr/bin/python{recipe.PYTHON}")


def guest_program(arch: recipe.Architecture, tree: Path, program: str) -> list[str]:
    """Return how to run one of the programs in ``tree``."""
    libraries = tree / "usr/lib" / arch.triplet
    loader = [str(tree / arch.loader), "--library-path", str(libraries)]
    return [*emulator(arch), *loader, str(tree / program)]
