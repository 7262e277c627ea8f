"""Running docker commands against an engine, for the tests of this folder."""

from __future__ import annotations

import functools
import subprocess
import time
from pathlib import Path
from typing import Any

import pexpect
from tests.engine_process import REPOSITORY, EngineProcess, docker_cli, run_docker

TRIXIES_CLI = REPOSITORY / "build/trixie/root/usr/bin/docker"
"""Debian trixie's client, which packaging/test unpacks."""


@functools.cache
def docker_clients() -> dict[str, Path]:
    """Return the directories of the docker CLIs to test with, by version: the one on PATH, and
    trixie's where that is another."""
    found: dict[str, Path] = {}
    for program in (Path(docker_cli()), TRIXIES_CLI):
        if program.exists():
            command = [str(program), "--version"]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found.setdefault(told.split()[2].rstrip(","), program.parent)
    return found


def ok(engine: EngineProcess, *arguments: str, stdin: bytes = b"") -> str:
    """Run a command that must succeed; return its standard output."""
    done = run_docker(engine, *arguments, stdin=stdin)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def terminal(engine: EngineProcess, *arguments: str, **options: Any) -> pexpect.spawn:
    """Start a docker command on a terminal of 30 rows and 100 columns."""
    environment = {**engine.environment, "TERM": "xterm"}
    return pexpect.spawn(
        docker_cli(),
        list(arguments),
        env=environment,
        dimensions=(30, 100),
        timeout=60,
        encoding="utf-8",
        **options,
    )


def until(condition: Any, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
