"""Debian trixie's QEMU and virtiofsd, which `packaging/test` unpacks: they can save virtiofs."""

from __future__ import annotations

import json
import platform
from pathlib import Path

from desk.machine.qemu_command import binary_name
from tests.guest_image import REPOSITORY

ROOT = REPOSITORY / "build" / "trixie" / "qemu"


def _script(file: Path, program: str, *words: str) -> Path:
    """Write a script that starts an unpacked program with the libraries that came with it."""
    (libc,) = ROOT.glob("usr/lib/*/libc.so.6")
    (loader,) = libc.parent.glob("ld-linux-*.so.*")
    start = [loader, "--library-path", libc.parent, ROOT / program, *words]
    file.write_text(f'#!/bin/sh\nexec {" ".join(map(str, start))} "$@"\n')
    file.chmod(0o755)
    return file


def newer_qemu(directory: Path) -> Path:
    """Return a program in ``directory`` that is QEMU for machines like this computer."""
    name = binary_name({"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()])
    data = [f"-L {ROOT / 'usr' / 'share' / part}" for part in ("qemu", "seabios")]
    return _script(directory / name, f"usr/bin/{name}", *data)


def describe_virtiofsd(descriptions: Path) -> None:
    """Describe virtiofsd in a directory, as its package does in ``/usr/share/qemu/vhost-user``."""
    program = _script(descriptions / "virtiofsd", "usr/libexec/virtiofsd")
    (described,) = (ROOT / "usr" / "share" / "qemu" / "vhost-user").glob("*.json")
    told = {**json.loads(described.read_text()), "binary": str(program)}
    (descriptions / described.name).write_text(json.dumps(told))
