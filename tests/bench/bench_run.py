"""Wall time of `docker run --rm busybox true` and `docker exec`, deskd beside dockerd.

usage (as root): python -m tests.bench.bench_run [ROUNDS]
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

from tests.bench.engines import busybox_archive, desk_engine, docker_engine, interleave, report


def main() -> None:
    """Measure runs of each engine in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=int, nargs="?", default=20, help="runs of each engine (20)")
    rounds = parser.parse_args().rounds
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
            interleave(rounds, {e.name: partial(e.docker, "version") for e in engines}),
        )
        report(
            "docker run --rm bench true",
            interleave(
                rounds,
                {e.name: partial(e.docker, "run", "--rm", "bench", "true") for e in engines},
            ),
            limit=1 / 6,
        )
        for engine in engines:
            engine.docker("run", "-d", "--name", "sleeper", "bench", "sleep", "600")
        report(
            "docker exec sleeper true",
            interleave(
                rounds, {e.name: partial(e.docker, "exec", "sleeper", "true") for e in engines}
            ),
            limit=0.5,
        )


if __name__ == "__main__":
    main()
