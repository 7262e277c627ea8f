"""The kernel for direct boot, and the modules that the guest may want."""

from __future__ import annotations

import fnmatch
import lzma
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from guestbuild import elf, recipe
from guestbuild.errors import BuildError
from guestbuild.progress import run

# The boot protocol's header, see Linux's Documentation/arch/x86/boot.rst.
_SETUP_SECTORS = 0x1F1
_MAGIC = 0x202
_PAYLOAD = 0x248
_PT_LOAD = 1
_PT_NOTE = 4
_LEFT_OUT = (
    ".BTF", ".BTF.base", ".orc_unwind", ".orc_unwind_ip", ".orc_header", ".call_sites",
    ".static_call_sites",
)  # fmt: skip
"""Sections of modules: types for BPF; the unwinder's tables, a quarter of a module, which the
kernel relocates and sorts at each load (without them a stack trace marks the module's functions as
uncertain); the call sites that only ``retbleed=stuff`` patches; and the places of "static calls",
each of which is patched at each load, with interrupts of all processors. Without their list they
go by way of the kernel's trampolines, which it patches in any case."""
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of the unpacked packages."""

    release: str
    image: Path
    modules: Path


def find(tree: Path) -> Kernel:
    """Return the one kernel in ``tree``."""
    releases = sorted(path.name for path in (tree / "usr/lib/modules").iterdir())
    if len(releases) != 1:
        raise BuildError(f"the packages hold {len(releases)} kernels instead of one: {releases}")
    release = releases[0]
    return Kernel(release, tree / f"boot/vmlinuz-{release}", tree / "usr/lib/modules" / release)


def direct_boot(bzimage: bytes, arch: str) -> bytes:
    """Return the kernel as QEMU starts it fastest: uncompressed and without unused bytes.

    An x86 bzImage unpacks itself, which takes 0.6 s under emulation. The ELF file within has an
    entry for direct boot (PVH). Its sections, the relocations behind its segments and the zeros
    at its segments' ends (bss) are of no use to that.
    """
    if arch != "amd64":
        return bzimage
    if bzimage[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise BuildError("the kernel package's vmlinuz is no bzImage")
    setup = (bzimage[_SETUP_SECTORS] or 4) + 1
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    start = setup * 512 + offset
    payload = bzimage[start : start + length]
    if payload[:4] != _ZSTD_MAGIC:
        raise BuildError("the kernel's payload is not compressed with Zstandard: teach kernel.py")
    # The payload ends with its unpacked size, 4 bytes that are no part of the stream.
    return trim_elf(run(["zstd", "-dcq"], what="unpacking the kernel", stdin=payload[:-4]))


def trim_elf(executable: bytes) -> bytes:
    """Return an ELF executable without sections and without zeros at the end of its segments."""
    (table,) = struct.unpack_from("<Q", executable, 32)
    entry_size, count = struct.unpack_from("<HH", executable, 54)
    header = bytearray(executable[: table + entry_size * count])
    struct.pack_into("<Q", header, 40, 0)  # e_shoff
    struct.pack_into("<HHH", header, 58, 64, 0, 0)  # e_shentsize, e_shnum, e_shstrndx
    end = len(header)
    for index in range(count):
        place = table + index * entry_size
        (kind,) = struct.unpack_from("<I", executable, place)
        offset, _virtual, _physical, size = struct.unpack_from("<QQQQ", executable, place + 8)
        if kind == _PT_LOAD:
            size = len(executable[offset : offset + size].rstrip(b"\0"))
            struct.pack_into("<Q", header, place + 32, size)
        if kind in {_PT_LOAD, _PT_NOTE}:
            end = max(end, offset + size)
    return bytes(header) + executable[len(header) : end]


def module_name(path: Path | str) -> str:
    """Return the module's name as the kernel spells it: ``virtio-rng.ko.xz`` is virtio_rng."""
    return Path(path).name.split(".ko")[0].replace("-", "_")


class Modules:
    """The kernel's modules: which are wanted, what they depend on, what is built in."""

    def __init__(self, kernel: Kernel, triplet: str, scratch: Path) -> None:
        self._triplet = triplet
        self.kernel = kernel
        self._files = {
            module_name(path): path for path in sorted((kernel.modules / "kernel").rglob("*.ko*"))
        }
        builtin = (kernel.modules / "modules.builtin").read_text("utf-8").split()
        self.builtin = {module_name(path) for path in builtin}
        self._depends = self._dependencies(scratch)

    def _dependencies(self, scratch: Path) -> dict[str, list[str]]:
        """Return name: names that must be loaded before it, in loading order."""
        place = scratch / "usr/lib/modules" / self.kernel.release
        place.mkdir(parents=True)
        (scratch / "lib").symlink_to("usr/lib")
        for entry in self.kernel.modules.iterdir():
            (place / entry.name).symlink_to(entry)
        run(["depmod", "-b", scratch, self.kernel.release], what="resolving kernel modules")
        table = {}
        for line in (place / "modules.dep").read_text("utf-8").splitlines():
            path, _, rest = line.partition(":")
            table[module_name(path)] = [module_name(word) for word in reversed(rest.split())]
        return table

    def selection(self) -> list[str]:
        """Return the modules of the recipe with all that they depend on, sorted."""
        wanted = set()
        for directory in recipe.MODULE_DIRECTORIES:
            wanted |= {module_name(p) for p in (self.kernel.modules / directory).rglob("*.ko*")}
        wanted -= {
            name
            for name in wanted
            if any(fnmatch.fnmatch(name, pattern) for pattern in recipe.MODULES_LEFT_OUT)
        }
        wanted |= {module_name(name) for name in recipe.MODULES}
        available = {name for name in wanted if name in self._files}
        for feature in map(module_name, recipe.REQUIRED_FEATURES):
            if feature not in available and feature not in self.builtin:
                raise BuildError(
                    f"the kernel {self.kernel.release} has no {feature}: choose another package"
                )
        return sorted(set(self.loading_order(sorted(available))))

    def loading_order(self, names: Iterable[str]) -> list[str]:
        """Return these modules and their dependencies, each after what it needs."""
        order: list[str] = []
        for name in map(module_name, names):
            if name not in self._files:
                continue  # built in, or not in this architecture's kernel
            for each in (*self._depends[name], name):
                if each not in order:
                    order.append(each)
        return order

    def write(self, name: str, target: Path) -> None:
        """Write the module uncompressed: unpacking xz under emulation costs more than reading.

        What the kernel does without goes: type information, symbols, the signature, and the tables
        of ``_LEFT_OUT``, together more than half of its size.
        """
        path = self._files[name]
        data = path.read_bytes()
        target.write_bytes(lzma.decompress(data) if path.suffix == ".xz" else data)
        elf.strip([target], self._triplet, sections=_LEFT_OUT)

    def install(self, root: Path) -> list[str]:
        """Put the selection with its index files below ``root``; return the names."""
        place = root / "usr/lib/modules" / self.kernel.release
        names = self.selection()
        for name in names:
            source = self._files[name]
            target = place / source.relative_to(self.kernel.modules)
            target = target.with_name(target.name.removesuffix(".xz"))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.write(name, target)
        for entry in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            shutil.copyfile(self.kernel.modules / entry, place / entry)
        link = root / "lib"
        link.symlink_to("usr/lib")
        run(["depmod", "-b", root, self.kernel.release], what="indexing kernel modules")
        link.unlink()
        # kmod reads the binary indexes. Two texts stay, for people and for the engine's diagnosis.
        for index in ("alias", "symbols", "builtin.modinfo", "order", "softdep", "devname"):
            (place / f"modules.{index}").unlink(missing_ok=True)
        return names
