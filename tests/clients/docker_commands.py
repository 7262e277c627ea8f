"""Running docker commands against an engine, for the tests of this folder."""

from __future__ import annotations

import time
from typing import Any

import pexpect
from tests.engine_process import EngineProcess, docker_cli, run_docker


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
