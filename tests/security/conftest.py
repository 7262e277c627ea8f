"""The engine's fixtures, and images made by an attacker."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine_fixtures import api, engine, own_engine, shared_engine
from tests.engine_process import API, EngineProcess, busybox_tar

__all__ = ["api", "engine", "own_engine", "shared_engine"]

HOST_FILES = ("/proc/sys/kernel/core_pattern", "/proc/sys/net/ipv4/ip_forward", "/etc/passwd")


def link(name: str, goal: str) -> tarfile.TarInfo:
    """Describe a symbolic link of an image."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, goal
    return entry


def directory(name: str) -> tarfile.TarInfo:
    """Describe a directory of an image."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    return entry


def pipe(name: str) -> tarfile.TarInfo:
    """Describe a named pipe of an image."""
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.FIFOTYPE
    return entry


def image_tar(*entries: tarfile.TarInfo | tuple[str, str]) -> bytes:
    """Return the test image's tar with entries in place of its own; (name, text) is a file."""
    names = {entry[0] if isinstance(entry, tuple) else entry.name for entry in entries}
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(busybox_tar())) as base,
        tarfile.open(fileobj=buffer, mode="w") as tar,
    ):
        for member in base:
            if member.name not in names:
                tar.addfile(member, base.extractfile(member) if member.isreg() else None)
        for entry in entries:
            if isinstance(entry, tuple):
                file = tarfile.TarInfo(entry[0])
                file.size, file.mode = len(entry[1]), 0o755
                tar.addfile(file, io.BytesIO(entry[1].encode()))
            else:
                tar.addfile(entry)
    return buffer.getvalue()


MakeImage = Callable[..., str]


@pytest.fixture
def hostile_image(engine: EngineProcess) -> Iterator[MakeImage]:
    """Make images with an attacker's entries; returns their names."""
    made: list[str] = []

    def make(*entries: tarfile.TarInfo | tuple[str, str], changes: str = "") -> str:
        name = f"hostile-{secrets.token_hex(4)}"
        target = f"{API}/images/create?fromSrc=-&repo={name}"
        if changes:
            target += f"&changes={changes}"
        status, _, answer = engine.api.raw("POST", target, image_tar(*entries))
        assert status == 200, answer
        made.append(name)
        return name

    yield make
    engine.remove_everything()
    for name in made:
        engine.api.delete(f"/images/{name}", force=True)


@pytest.fixture(autouse=True)
def _host_is_unharmed() -> Iterator[None]:
    """Whatever a container tried: the machine's own files are as they were."""
    before = {path: Path(path).read_bytes() for path in HOST_FILES}
    devices = {path: Path(path).stat() for path in ("/dev/null", "/dev/console", "/dev/ptmx")}
    yield
    assert {path: Path(path).read_bytes() for path in HOST_FILES} == before
    for path, info in devices.items():
        now = Path(path).stat()
        assert (now.st_mode, now.st_rdev, now.st_ino) == (info.st_mode, info.st_rdev, info.st_ino)
