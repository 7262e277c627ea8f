"""A laptop for tests of the command line, with a DESK_HOME of its own.

The fixture ``host`` of ``tests/engine`` makes one; ``laptop_with_machine`` one with a real machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from desk.machine import process
from tests.cli_process import DESK, Result
from tests.engine_process import EngineProcess


@dataclass
class Host:
    """A laptop of its own: an empty DESK_HOME, in the network namespace of a test's engine.

    Without an engine it is in the tests' own network, and must not make containers.
    """

    engine: EngineProcess | None
    home: Path
    timeout_s: float = 240.0

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DOCKER", "DESK"))
        }
        # As where Desk is installed: what is imported was compiled before.
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        return {**kept, "DESK_HOME": str(self.home), "DOCKER_CONFIG": str(self.home)}

    def command(self, *words: str) -> list[str]:
        return list(words) if self.engine is None else self.engine.inside_network(*words)

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Result:
        return self.run(DESK, *arguments, stdin=stdin)

    def run(self, *words: str, stdin: bytes = b"") -> Result:
        done = subprocess.run(
            self.command(*words),
            input=stdin,
            capture_output=True,
            env=self.environment,
            timeout=self.timeout_s,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


LAPTOP = "10.0.2.2"
"""The laptop's 127.0.0.1 as a guest of QEMU's user network sees it."""


class Laptop(Host):
    """One with a machine. Its commands must end with the code that is expected of them."""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"DOCKER_CONFIG": str(self.home / "docker")}

    def told(self, *words: str, code: int = 0) -> str:
        """Run a command; return what it printed, on standard error if it had to fail."""
        done = self.run(*words)
        assert done.code == code, f"{words}\n{done.out}\n{done.err}"
        return done.out if code == 0 else done.err

    def desk(self, *words: str, code: int = 0) -> str:
        return self.told(DESK, *words, code=code)

    def docker(self, *words: str, code: int = 0) -> str:
        engine = self.desk("machine", "url").strip()
        return self.told("docker", "-H", engine, *words, code=code)


@contextlib.contextmanager
def laptop_with_machine(
    guest_image: Path, *, memory: str = "768m", disk: str = "4g"
) -> Iterator[Laptop]:
    """Make a home with the machine ``default``, running; both are gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    made = Laptop(None, home, timeout_s=600.0)
    try:
        made.desk("machine", "create", "--memory", memory, "--disk", disk, "-o", "accelerator=tcg",
                  "--image", str(guest_image), "default")  # fmt: skip
        made.desk("machine", "start")
        yield made
        made.desk("machine", "rm", "-f", "default")
    finally:
        for pid_file in home.glob("machines/*/*.pid"):
            running = process.recall(pid_file)
            if running is not None:
                running.kill()
        shutil.rmtree(home, ignore_errors=True)
