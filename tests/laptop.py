"""A laptop for tests of the command line, with a DESK_HOME of its own.

The fixture ``host`` of ``tests/engine`` makes one.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.cli_process import DESK, Result
from tests.engine_process import EngineProcess


@dataclass
class Host:
    """A laptop of its own: an empty DESK_HOME, in the network namespace of a test's engine.

    Without an engine it is in the tests' own network, and must not make containers.
    """

    engine: EngineProcess | None
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DOCKER", "DESK"))
        }
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
            timeout=240,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())
