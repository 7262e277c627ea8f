"""An engine with ``--userns-remap`` whose users and subordinate IDs are its own: it runs with a
private copy of /etc, so that the machine's files stay as they are."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.engine_process import EngineProcess

USER = "desk-remap"
UID_BASE, GID_BASE, COUNT = 200_000, 300_000, 65536


class RemappedEngine(EngineProcess):
    """Give it ``--userns-remap`` among the flags, or in the next start's ``extra_flags``."""

    def __init__(self, *flags: str) -> None:
        super().__init__(*flags)
        self.extra_flags: tuple[str, ...] = ()
        self.etc = self.root / "etc"
        shutil.copytree("/etc", self.etc, symlinks=True)
        self.add_line("passwd", f"{USER}:x:4242:4243::/nonexistent:/usr/sbin/nologin")
        self.add_line("group", f"{USER}:x:4243:")
        self.write("subuid", f"{USER}:{UID_BASE}:{COUNT}\n")
        self.write("subgid", f"{USER}:{GID_BASE}:{COUNT}\n")

    def write(self, name: str, text: str) -> None:
        (self.etc / name).write_text(text)

    def add_line(self, name: str, line: str) -> None:
        with (self.etc / name).open("a") as file:
            file.write(line + "\n")

    def command(self, *flags: str) -> list[str]:
        script = f'mount --bind {self.etc} /etc && exec "$@"'
        inner = super().command(*self.extra_flags, *flags)
        return ["unshare", "--mount", "sh", "-c", script, "sh", *inner]

    @property
    def remapped_root(self) -> Path:
        return self.data_root / f"{UID_BASE}.{GID_BASE}"

    def fails_to_start(self, *flags: str) -> str:
        """Run the engine where it must refuse to start; return what it says."""
        done = subprocess.run(
            self.command(*flags), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
        return done.stderr


@contextlib.contextmanager
def remapped_engine(*flags: str, start: bool = True) -> Iterator[RemappedEngine]:
    """Run such an engine; nothing may be left behind at its end."""
    engine = RemappedEngine(*flags)
    try:
        if start:
            engine.start()
            engine.load_image()
        yield engine
    finally:
        left = engine.close()
    assert not left, f"left behind by the engine: {left}"
