"""A laptop's home of Desk with one real machine, and the commands that a person types there."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.cli_process import DESK

LAPTOP = "10.0.2.2"
"""The laptop's 127.0.0.1 as a guest of QEMU's user network sees it."""


class Laptop:
    """A DESK_HOME with one machine, Docker's client set to it, and no other settings."""

    def __init__(self, home: Path) -> None:
        self.home = home
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("DOCKER", "DESK"))}
        self.environment = {**kept, "DESK_HOME": str(home), "DOCKER_CONFIG": str(home / "docker")}

    def run(self, *words: str, code: int = 0, timeout_s: float = 300) -> str:
        done = subprocess.run(
            words,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def desk(self, *words: str, code: int = 0) -> str:
        return self.run(DESK, *words, code=code)

    def docker(self, *words: str, code: int = 0) -> str:
        engine = self.desk("machine", "url").strip()
        return self.run("docker", "-H", engine, *words, code=code)


@contextlib.contextmanager
def laptop_with_machine(guest_image: Path) -> Iterator[Laptop]:
    """Make a home with the machine ``default``, running; both are gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    made = Laptop(home)
    try:
        made.desk("machine", "image", "install", str(guest_image))
        made.desk("machine", "create", "--memory", "768m", "--disk", "4g", "-o", "accelerator=tcg",
                  "default")  # fmt: skip
        made.desk("machine", "start")
        yield made
        made.desk("machine", "rm", "-f", "default")
    finally:
        for pid_file in home.glob("machines/*/*.pid"):
            subprocess.run(["kill", "-9", pid_file.read_text().split()[0]], check=False)
        shutil.rmtree(home, ignore_errors=True)
