"""Which libraries programs are linked with, found without running them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from guestbuild.errors import BuildError
from guestbuild.progress import run

_NEEDED = re.compile(r"\(NEEDED\).*\[(?P<name>[^]]+)\]")
_FILE = re.compile(r"^File: (?P<path>.+)$")


def is_elf(path: Path) -> bool:
    """Return whether the file begins as an ELF file."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def strip(paths: Iterable[Path], triplet: str, *, sections: tuple[str, ...] = ()) -> None:
    """Take symbols for debuggers out of these ELF files, and the named sections."""
    remove = [f"--remove-section={name}" for name in sections]
    for path in paths:
        if path.is_file() and not path.is_symlink() and is_elf(path):
            argv: list[str | Path] = [f"{triplet}-objcopy", "--strip-unneeded", *remove, path]
            run(argv, what=f"stripping {path.name}")


def needed(paths: Iterable[Path]) -> set[str]:
    """Return the names of the libraries that these ELF files ask for directly."""
    files = [path for path in paths if is_elf(path)]
    if not files:
        return set()
    output = run(["readelf", "-dW", *files], what="reading library dependencies")
    return {match["name"] for match in _NEEDED.finditer(output.decode("utf-8", "replace"))}


def closure(paths: Iterable[Path], directories: list[Path], given: set[str]) -> dict[str, Path]:
    """Return every library (name: file) that ``paths`` and ``given`` names need, transitively."""
    found: dict[str, Path] = {}
    wanted = needed(paths) | given
    while wanted:
        fresh: dict[str, Path] = {}
        for name in sorted(wanted):
            places = [directory / name for directory in directories]
            place = next((place for place in places if place.exists()), None)
            if place is None:
                raise BuildError(f"the library {name} is in no package of the recipe: add it")
            fresh[name] = place
        found |= fresh
        wanted = needed(fresh.values()) - found.keys()
    return found
