"""Packs Debian's docker-registry for `desk registry`: beside the image, which boots without it."""

from __future__ import annotations

import tarfile
from pathlib import Path

from guestbuild import elf, recipe
from guestbuild.archives import add
from guestbuild.errors import BuildError
from guestbuild.packages import Base
from guestbuild.progress import run

PROGRAM = "usr/bin/docker-registry"
_PACKAGES = ("docker-registry", "libc6")
_DIRECTORIES = ("usr", "usr/bin", "etc", "etc/docker", "etc/docker/registry", "var", "var/lib",
                "var/lib/registry", "tmp")  # fmt: skip
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}


def make(arch: recipe.Architecture, base: Base, output: Path) -> None:
    """Write a root file system of the registry alone, as a .tar.xz that an engine imports."""
    program = base.tree / PROGRAM
    if not program.is_file():
        raise BuildError(f"no package of the recipe has {PROGRAM}: correct recipe.py")
    loader = Path(arch.loader)
    libraries = base.tree / "usr/lib" / arch.triplet
    found = elf.closure([program], [libraries, base.tree / loader.parent], set())
    files = {PROGRAM: program, str(loader): (base.tree / loader).resolve()}
    for name in sorted(found.keys() - {loader.name}):
        files[f"usr/lib/{arch.triplet}/{name}"] = found[name].resolve()
    for name in _PACKAGES:
        files[f"usr/share/doc/{name}/copyright"] = base.tree / f"usr/share/doc/{name}/copyright"
    plain = output.with_suffix("")
    with tarfile.open(plain, "w", format=tarfile.USTAR_FORMAT) as archive:
        for directory in sorted({*_DIRECTORIES, *_parents(files)}):
            mode = 0o1777 if directory == "tmp" else 0o755
            add(archive, directory, mode=mode, mtime_s=recipe.EPOCH_S, kind=tarfile.DIRTYPE)
        for name, target in _LINKS.items():
            if any(file.startswith(f"{target}/") for file in files):
                add(
                    archive,
                    name,
                    mode=0o777,
                    mtime_s=recipe.EPOCH_S,
                    kind=tarfile.SYMTYPE,
                    target=target,
                )
        for name, origin in files.items():
            mode = 0o644 if name.endswith("/copyright") else 0o755
            add(archive, name, mode=mode, mtime_s=recipe.EPOCH_S, data=origin.read_bytes())
    # Several threads of xz would cut the stream in blocks, by the computer's processors.
    run(["xz", "-6", "--check=crc32", "--threads=1", plain], what=f"compressing {output.name}")


def _parents(names: dict[str, Path]) -> set[str]:
    return {str(parent) for name in names for parent in Path(name).parents if str(parent) != "."}
