"""The command line of the build, and its order of steps."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from guestbuild import box, engine, host, initramfs, packages, recipe, registry, root
from guestbuild.errors import BuildError
from guestbuild.kernel import Modules, direct_boot, find
from guestbuild.packages import Base
from guestbuild.progress import run, step

FORMAT = 1


class FileEntry(TypedDict):
    """One file of the image, as the manifest names it; ``size`` in bytes."""

    file: str
    sha256: str
    size: int


_FILES = ("kernel", "initramfs", "root", "registry")
"""The manifest's keys that name files; the machine boots from all but the last."""

_RECIPE_SOURCES = ("vm-images", "packaging/guest", "guest-engine/deskd", "pyproject.toml")


def main(argv: list[str] | None = None) -> int:
    """Build what is asked for; return the exit status."""
    arguments = _parse(argv)
    try:
        if arguments.missing:
            host.extend_path()
            arch = recipe.ARCHITECTURES[arguments.arch]
            print("\n".join(host.missing_packages(arch, for_box=bool(arguments.box))))
            return 0
        _build(arguments)
    except BuildError as error:
        print(f"vm-images/build: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vm-images/build: interrupted; run it again to go on", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"vm-images/build: {error.strerror}: {error.filename}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="vm-images/build",
        description="Build Desk's guest image from Debian packages. What is up to date is kept.",
    )
    default = engine.PROJECT / "build"
    parser.add_argument("--output", type=Path, default=default / "guest", metavar="DIR")
    parser.add_argument("--cache", type=Path, default=default / "cache", metavar="DIR")
    parser.add_argument("--arch", choices=recipe.ARCHITECTURES, default=recipe.host_architecture())
    parser.add_argument(
        "--mirror", default=recipe.MIRROR,
        help="a Debian mirror; one of snapshot.debian.org for a build that can be repeated",
    )  # fmt: skip
    parser.add_argument("--refresh", action="store_true", help="fetch packages anew")
    parser.add_argument("--tar", type=Path, metavar="FILE", help="also pack the image (.tar.xz)")
    parser.add_argument("--box", choices=box.PROVIDERS, help="also pack a Vagrant box")
    parser.add_argument("--box-output", type=Path, metavar="FILE")
    parser.add_argument(
        "--missing", action="store_true", help="only print the packages that this computer lacks"
    )
    return parser.parse_args(argv)


def _build(arguments: argparse.Namespace) -> None:
    host.extend_path()
    arch = recipe.ARCHITECTURES[arguments.arch]
    output = arguments.output.absolute()
    cache = arguments.cache.absolute()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        for leftover in cache.glob(".*-*"):  # of an interrupted run
            shutil.rmtree(leftover, ignore_errors=True)
        base_key = _digest(arch.debian, arguments.mirror, recipe.SUITE, arch.kernel_package,
                           *recipe.PACKAGES)  # fmt: skip
        base_place = cache / f"packages-{arch.debian}-{base_key[:12]}"
        if arguments.refresh:
            shutil.rmtree(base_place, ignore_errors=True)
        if not (base_place / "packages.json").exists():
            host.check(arch)
            with step(f"Fetching Debian {recipe.SUITE} packages for {arch.debian}"):
                packages.fetch(arch, base_place, arguments.mirror)
        _prune(cache, f"packages-{arch.debian}-*", keep=base_place)
        base = packages.load(base_place)
        wheels = _wheels(arch, cache)
        key = _digest(_sources_digest(), json.dumps(base.versions, sort_keys=True), wheels.name)
        if _up_to_date(output, key):
            print(f"{output} is up to date", file=sys.stderr)
        else:
            host.check(arch)
            _make_image(arch, base, wheels, output, key)
        if arguments.tar:
            _pack(output, arguments.tar.absolute())
        if arguments.box:
            host.check(arch, for_box=True)
            default = engine.PROJECT / "build" / f"desk-{arguments.box}.box"
            box.make(arguments.box, output, (arguments.box_output or default).absolute())


def _wheels(arch: recipe.Architecture, cache: Path) -> Path:
    requirements = engine.project()["requires"]
    name = _digest(arch.debian, recipe.PYTHON, *requirements)[:12]
    place = cache / f"wheels-{arch.debian}-{name}"
    if not place.is_dir():
        with step("Fetching the engine's Python packages"):
            engine.fetch_wheels(arch, place)
    _prune(cache, f"wheels-{arch.debian}-*", keep=place)
    return place


def _prune(cache: Path, pattern: str, *, keep: Path) -> None:
    """Remove what earlier recipes fetched: each is some 500 MB and comes back when needed."""
    for place in cache.glob(pattern):
        if place != keep:
            shutil.rmtree(place)


def _make_image(
    arch: recipe.Architecture, base: Base, wheels: Path, output: Path, key: str
) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as directory:
        scratch = Path(directory)
        made = scratch / "made"
        made.mkdir()
        kernel = find(base.tree)
        with step(f"Unpacking the kernel {kernel.release}"):
            modules = Modules(kernel, arch.triplet, scratch / "modules")
            packed = kernel.image.read_bytes()
            (made / "vmlinux").write_bytes(direct_boot(packed, arch.debian))
            (made / "vmlinuz").write_bytes(packed)  # for boot loaders, no part of the image
        with step("Assembling the root"):
            tree = scratch / "root"
            contents = root.assemble(arch, base, wheels, modules, tree)
        with step("Finding what the engine reads at its start"):
            engine.list_prefetch(arch, base.tree, tree)
        with step("Compressing the root"):
            _compress(tree / "usr", made / "root.squashfs")
        with step("Packing the initramfs"):
            initramfs.make(arch, base, modules, made / "initramfs.cpio", for_box=False)
            initramfs.make(arch, base, modules, made / "initramfs-box.cpio", for_box=True)
        with step("Packing the registry"):
            registry.make(arch, base, made / "registry.tar.xz")
        versions = {name: base.versions[name] for name in contents["packages"]}
        entries = {
            "kernel": _entry(made / "vmlinux"),
            "initramfs": _entry(made / "initramfs.cpio"),
            "root": _entry(made / "root.squashfs"),
            "registry": _entry(made / "registry.tar.xz"),
        }
        manifest = {
            "format": FORMAT,
            "version": engine.project()["version"],
            "arch": arch.debian,
            **entries,
            "cmdline": _cmdline(arch),
            "kernel_release": kernel.release,
            "modules": contents["modules"],
            "packages": versions,
            "python_packages": _python_packages(wheels),
            "input": key,
        }
        text = json.dumps(manifest, indent=2, sort_keys=False) + "\n"
        (made / "manifest.json").write_text(text, "utf-8")
        if output.exists():
            output.replace(scratch / "replaced")
        made.replace(output)
    files = [output / entries[name]["file"] for name in _FILES[:-1]]
    total = sum(path.stat().st_size for path in files)
    parts = ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f}" for path in files)
    beside = entries["registry"]["size"] / 1e6
    print(
        f"{output}: {total / 1e6:.1f} MB: {parts}; beside it the registry {beside:.1f}",
        file=sys.stderr,
    )


def _compress(tree: Path, output: Path) -> None:
    argv: list[str | Path] = ["mksquashfs", tree, output, "-noappend", "-quiet", "-no-progress"]
    # lz4 takes a quarter more space than zstd and much less of an emulated processor's time.
    argv += ["-comp", "lz4", "-Xhc", "-b", "128K"]
    argv += ["-all-root", "-no-xattrs", "-all-time", str(recipe.EPOCH_S)]
    argv += ["-mkfs-time", str(recipe.EPOCH_S)]
    run(argv, what="making the root's file system")


def _cmdline(arch: recipe.Architecture) -> str:
    parts = [recipe.CMDLINE.format(console=arch.console), recipe.CMDLINE_DIRECT]
    if arch.debian == "amd64":
        parts.append(recipe.CMDLINE_DIRECT_X86)
    return " ".join(parts)


def _python_packages(wheels: Path) -> dict[str, str]:
    names = sorted(path.name.removesuffix(".dist-info") for path in wheels.glob("*.dist-info"))
    return dict(name.rsplit("-", 1) for name in names)


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "sha256": digest, "size": path.stat().st_size}


def _up_to_date(output: Path, key: str) -> bool:
    try:
        manifest = json.loads((output / "manifest.json").read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    if manifest.get("input") != key:
        return False
    files = [manifest[name] for name in _FILES if name in manifest]
    return all(
        (output / entry["file"]).is_file()
        and (output / entry["file"]).stat().st_size == entry["size"]
        for entry in files
    )


def _pack(image: Path, target: Path) -> None:
    """Write the image as one .tar.xz, for publishing; print its SHA-256."""
    with step(f"Packing {target.name}"):
        partial = target.with_name(f".{target.name}.partial")
        with tarfile.open(partial, "w:xz", preset=6) as archive:
            manifest = json.loads((image / "manifest.json").read_text("utf-8"))
            names = [manifest[name]["file"] for name in _FILES]
            # The manifest comes first: whoever reads the stream knows what to expect.
            for path in (image / name for name in ("manifest.json", *names)):
                info = archive.gettarinfo(str(path), path.name)
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                info.mtime = recipe.EPOCH_S
                with path.open("rb") as file:
                    archive.addfile(info, file)
        partial.replace(target)
    print(f"{_entry(target)['sha256']}  {target}")


def _sources_digest() -> str:
    """Return a digest of everything in the source tree that the image is made from."""
    digest = hashlib.sha256()
    for name in _RECIPE_SOURCES:
        place = engine.PROJECT / name
        files = [place] if place.is_file() else sorted(place.rglob("*"))
        for path in files:
            relative = path.relative_to(engine.PROJECT)
            unused = any(part == "__pycache__" or part.startswith(".") for part in relative.parts)
            if path.is_file() and not unused:
                digest.update(f"{relative}\0".encode())
                digest.update(str(path.stat().st_mode & 0o111 != 0).encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Let one build at a time use the cache; another one waits and says so."""
    with file.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another build to end", file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        os.utime(file)
        yield
