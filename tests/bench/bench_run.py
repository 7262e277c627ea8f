"""Wall time of `docker run --rm busybox true` and `docker exec`, deskd beside dockerd.

usage (as root): python -m tests.bench.bench_run [ROUNDS]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.bench.engines import busybox_archive, desk_engine, docker_engine, interleave, report


def main() -> None:
    """Measure ``ROUNDS`` (default 20) runs of each engine in turn."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with (
        tempfile.TemporaryDirectory(prefix="desk-bench-") as scratch,
        desk_engine() as ours,
        docker_engine() as theirs,
    ):
        archive = busybox_archive(Path(scratch))
        for engine in (ours, theirs):
            engine.docker("import", "-", "bench", stdin=archive)
        engines = (ours, theirs)
        report(
            "docker version (the CLI and one request)",
            interleave(rounds, {e.name: lambda e=e: e.docker("version") for e in engines}),
        )
        report(
            "docker run --rm bench true",
            interleave(
                rounds,
                {e.name: lambda e=e: e.docker("run", "--rm", "bench", "true") for e in engines},
            ),
            limit=1 / 6,
        )
        for engine in engines:
            engine.docker("run", "-d", "--name", "sleeper", "bench", "sleep", "600")
        report(
            "docker exec sleeper true",
            interleave(
                rounds, {e.name: lambda e=e: e.docker("exec", "sleeper", "true") for e in engines}
            ),
            limit=0.5,
        )


if __name__ == "__main__":
    main()
