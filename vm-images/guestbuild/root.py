"""Assembles the guest's /usr, which carries the skeleton of "/" with it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from guestbuild import elf, engine, recipe
from guestbuild.errors import BuildError
from guestbuild.kernel import Modules
from guestbuild.packages import Base
from guestbuild.programs import emulator
from guestbuild.progress import run

GUEST = engine.PROJECT / "packaging" / "guest"
BUSYBOX_IMAGE = engine.PROJECT / "vm-images" / "busybox_image.py"
SKELETON = "usr/share/desk/root"


def assemble(
    arch: recipe.Architecture, base: Base, wheels: Path, modules: Modules, root: Path
) -> dict[str, list[str]]:
    """Fill ``root``; return the names of the modules and of the Debian packages within."""
    root.mkdir()
    used: set[str] = set()

    def take(source: str, target: str, mode: int) -> Path:
        origin = base.tree / source
        if not origin.exists():
            raise BuildError(f"no package of the recipe has {source}: correct recipe.py")
        used.add(source)
        place = root / target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, place)
        place.chmod(mode)
        return place

    for source, target in recipe.PROGRAMS.items():
        take(source, target, 0o755)
    for name in recipe.DATA_FILES:
        take(name, f"{SKELETON}/{name}" if name.startswith("etc/") else name, 0o644)
    engine.install_stdlib(base.tree, root)
    used.add(f"usr/lib/python{recipe.PYTHON}/os.py")
    engine.install_packages(wheels, root)
    _install_libraries(arch, base, root, take)
    _link_applets(arch, base, root)
    for name, destination in recipe.LINKS.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(destination)
    elf.strip(root.rglob("*.so*"), arch.triplet)
    engine.compile_all(arch, base.tree, root)
    engine.compile_confinement(arch, base.tree, root)
    installed = modules.install(root)
    _install_own_files(arch, base, root)
    _install_certificates(base, root)
    packages = sorted(
        {base.owners[path] for path in used if path in base.owners}
        | {"ca-certificates", name_of_kernel(base)}
    )
    _install_licences(base, packages, root)
    return {"modules": installed, "packages": packages}


def name_of_kernel(base: Base) -> str:
    """Return the name of the package that holds the kernel itself."""
    return next(name for name in base.versions if name.startswith("linux-image-6"))


def _install_libraries(arch: recipe.Architecture, base: Base, root: Path, take: object) -> None:
    assert callable(take)
    libraries = base.tree / "usr/lib" / arch.triplet
    loader = Path(arch.loader)
    programs = [
        path for path in root.rglob("*") if path.is_file() and not path.is_symlink()
        and (path.stat().st_mode & 0o111 or ".so" in path.name)
    ]  # fmt: skip
    found = elf.closure(
        programs, [libraries, base.tree / loader.parent], set(recipe.LOADED_LIBRARIES)
    )
    for name in sorted(found.keys() - {loader.name}):
        origin = (libraries / name).resolve().relative_to(base.tree.resolve())
        take(str(origin), f"usr/lib/{arch.triplet}/{name}", 0o644)
    real = (base.tree / loader).resolve().relative_to(base.tree.resolve())
    take(str(real), str(loader), 0o755)


def _link_applets(arch: recipe.Architecture, base: Base, root: Path) -> None:
    argv = [*emulator(arch), base.tree / "usr/bin/busybox", "--list-full"]
    listing = run(argv, what="asking busybox its applets")
    for line in listing.decode().split():
        directory, _, name = line.rpartition("/")
        if name in recipe.APPLETS_LEFT_OUT:
            continue
        place = root / ("usr/sbin" if directory.endswith("sbin") else "usr/bin") / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists() and not place.is_symlink():
            place.symlink_to("busybox" if place.parent.name == "bin" else "../bin/busybox")


def _install_own_files(arch: recipe.Architecture, base: Base, root: Path) -> None:
    """Put the project's own programs and settings in place, and the skeleton of "/"."""
    for source, target in ((GUEST / "bin", "usr/bin"), (GUEST / "lib", "usr/lib/desk")):
        for file in sorted(source.iterdir()):
            place = root / (f"usr/sbin/{file.name}" if file.name == "poweroff" else "")
            if place == root:
                place = root / target / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            shutil.copyfile(file, place)
            place.chmod(0o755)
    skeleton = root / SKELETON
    shutil.copytree(GUEST / "root", skeleton, dirs_exist_ok=True)
    for name, mode in recipe.ROOT_DIRECTORIES.items():
        (skeleton / name).mkdir(parents=True, exist_ok=True)
        (skeleton / name).chmod(mode)
    for name, destination in recipe.ROOT_LINKS.items():
        place = skeleton / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name == "lib64" and not (root / "usr/lib64").exists():
            continue
        place.symlink_to(destination)
    (skeleton / "etc/shadow").chmod(0o600)
    version = engine.project()["version"]
    (root / "usr/lib/os-release").write_text(
        f'NAME="Desk"\nID=desk\nID_LIKE=debian\nVERSION_ID="{version}"\n'
        f'PRETTY_NAME="Desk {version} (Debian {recipe.SUITE})"\nVERSION_CODENAME={recipe.SUITE}\n',
        "utf-8",
    )
    shutil.copyfile(GUEST / "vagrant.pub", root / "usr/share/desk/vagrant.pub")
    images = root / "usr/share/desk/images"
    images.mkdir(parents=True)
    busybox = base.tree / "usr/bin/busybox"
    run(
        [sys.executable, BUSYBOX_IMAGE, images / "busybox.tar", "--busybox", busybox,
         "--arch", arch.busybox_image, *(f"--emulator={word}" for word in emulator(arch))],
        what="making the bundled image",
        env={**os.environ, "SOURCE_DATE_EPOCH": str(recipe.EPOCH_S)},
    )  # fmt: skip


def _install_certificates(base: Base, root: Path) -> None:
    """Join the certificate authorities into one file, as update-ca-certificates does."""
    parts = sorted((base.tree / "usr/share/ca-certificates").rglob("*.crt"))
    if not parts:
        raise BuildError("the package ca-certificates holds no certificates: correct recipe.py")
    bundle = root / "usr/share/desk/ca-certificates.crt"
    texts = [part.read_text("ascii").rstrip("\n") + "\n" for part in parts]
    bundle.write_text("".join(texts), "ascii")


def _install_licences(base: Base, packages: list[str], root: Path) -> None:
    """Keep the copyright file of every package that something was taken from."""
    for name in packages:
        source = base.tree / "usr/share/doc" / name / "copyright"
        if source.is_file():
            place = root / "usr/share/doc" / name / "copyright"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
    licence = root / "usr/share/doc/desk/copyright"
    licence.parent.mkdir(parents=True)
    shutil.copyfile(engine.PROJECT / "LICENSE", licence)
    lines = [f"{name} {base.versions[name]}\n" for name in packages]
    (root / "usr/share/desk/packages.txt").write_text("".join(lines), "utf-8")
