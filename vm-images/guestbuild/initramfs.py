"""The initramfs: BusyBox, one script, and the modules without which there is no root; on x86-64 a
small program besides."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from guestbuild import recipe
from guestbuild.kernel import Modules
from guestbuild.packages import Base
from guestbuild.progress import run
from guestbuild.root import GUEST

APPLETS = (
    "cat", "chroot", "cp", "hexdump", "insmod", "mkdir", "mount", "poweroff", "rmdir", "sh",
    "sleep", "switch_root", "usleep",
)  # fmt: skip
DIRECTORIES = ("bin", "dev", "modules", "new", "proc", "sys")


def make(
    arch: recipe.Architecture, base: Base, modules: Modules, output: Path, *, for_box: bool
) -> None:
    """Write the cpio archive ``output``; it stays uncompressed, which boots fastest."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".initramfs-") as scratch:
        root = Path(scratch)
        for name in DIRECTORIES:
            (root / name).mkdir()
        _copy(base.tree / "usr/bin/busybox", root / "bin/busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        _copy(GUEST / "initramfs" / "init", root / "init")
        if arch.debian == "amd64":
            _assemble(arch, "hold-device-filter", root / "bin")
        placed: set[str] = set()
        for listing, names in (
            ("alone", recipe.INITRAMFS_ALONE),
            ("first", recipe.INITRAMFS_FIRST),
            ("later", recipe.INITRAMFS_LATER),
            ("box", recipe.INITRAMFS_BOX if for_box else ()),
        ):
            order = [name for name in modules.loading_order(names) if name not in placed]
            placed |= set(order)
            for name in order:
                modules.write(name, root / "modules" / f"{name}.ko")
            (root / "modules" / listing).write_text("".join(f"{n}\n" for n in order), "utf-8")
        output.write_bytes(_archive(root))


def _assemble(arch: recipe.Architecture, name: str, directory: Path) -> None:
    """Make a program without libraries from its assembly."""
    source, program = GUEST / "initramfs" / f"{name}.S", directory / name
    with tempfile.TemporaryDirectory(prefix="desk-") as scratch:
        assembled = Path(scratch) / f"{name}.o"
        run([f"{arch.triplet}-as", "-o", assembled, source], what=f"assembling {source.name}")
        run([f"{arch.triplet}-ld", "-s", "-o", program, assembled], what=f"linking {name}")


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _archive(root: Path) -> bytes:
    """Return the tree as a "newc" cpio archive that depends on nothing but its content."""
    names = []
    for path in sorted(root.rglob("*")):
        os.utime(path, (recipe.EPOCH_S, recipe.EPOCH_S), follow_symlinks=False)
        names.append(str(path.relative_to(root)))
    argv = ["cpio", "--create", "--format=newc", "--reproducible", "--owner=0:0", "--quiet"]
    listing = "".join(f"{name}\n" for name in names).encode()
    return run(argv, what="packing the initramfs", stdin=listing, cwd=root)
