"""The ``desk`` program as tests run it: as a process of its own, against a given engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pexpect

DESK = str(Path(sys.executable).with_name("desk"))


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Cli:
    """Runs ``desk``, or docker, with the engine at ``socket``; ``home`` is an empty DESK_HOME."""

    socket: str
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DOCKER", "DESK"))
        }
        return {
            **kept,
            "DESK_HOME": str(self.home),
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(self.home),
        }

    def command(self, *arguments: str) -> list[str]:
        return [DESK, "-H", f"unix://{self.socket}", *arguments]

    def __call__(self, *arguments: str, stdin: bytes = b"", cwd: Path | None = None) -> Result:
        return self._run(self.command(*arguments), stdin, cwd)

    def ok(self, *arguments: str, stdin: bytes = b"", cwd: Path | None = None) -> str:
        """Run a command that must succeed and say nothing on standard error; return its output."""
        done = self(*arguments, stdin=stdin, cwd=cwd)
        assert (done.code, done.err) == (0, ""), done
        return done.out

    def docker(self, *arguments: str, stdin: bytes = b"", cwd: Path | None = None) -> Result:
        program = shutil.which("docker")
        assert program is not None, "the tests need the docker CLI: install Debian's docker-cli"
        return self._run([program, *arguments], stdin, cwd)

    def _run(self, command: Sequence[str], stdin: bytes, cwd: Path | None) -> Result:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            env=self.environment,
            timeout=240,
            cwd=cwd,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def spawn(self, *arguments: str) -> pexpect.spawn:
        """Run a command on a terminal of 30 rows and 100 columns."""
        words = self.command(*arguments)
        child = pexpect.spawn(
            words[0],
            words[1:],
            env=self.environment,
            encoding="utf-8",
            dimensions=(30, 100),
            timeout=60,
        )
        child.delaybeforesend = None
        return child
