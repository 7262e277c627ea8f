"""The throughput of exec's and attach's streams, deskd beside dockerd.

usage (as root): python -m tests.bench.bench_streams [MEGABYTES]     (default 1000)
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from tests.bench.engines import (
    Engine,
    busybox_archive,
    desk_engine,
    docker_cli,
    docker_engine,
    interleave,
    report,
)


def out(engine: Engine, megabytes: int, *command: str) -> None:
    """Run a CLI command whose output is ``megabytes`` of zeros; check how much came."""
    argv = [docker_cli(), "-H", f"unix://{engine.socket}", *command]
    argv += ["dd", "if=/dev/zero", "bs=64k", f"count={megabytes * 16}"]
    size = 0
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        if process.stdout is None:
            raise SystemExit("the command has no output")
        buffer = bytearray(1 << 20)
        while count := process.stdout.readinto(buffer):  # type: ignore[attr-defined]
            size += count
    if process.returncode or size != megabytes << 20:
        raise SystemExit(f"{engine.name}: {size} bytes came, exit code {process.returncode}")


def into(engine: Engine, megabytes: int, *command: str) -> None:
    """Send ``megabytes`` of zeros to a program that counts them."""
    argv = [docker_cli(), "-H", f"unix://{engine.socket}", *command, "wc", "-c"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        if process.stdin is None or process.stdout is None:
            raise SystemExit("the command has no stdio")
        block = bytes(1 << 20)
        for _ in range(megabytes):
            process.stdin.write(block)
        process.stdin.close()
        counted = int(process.stdout.read())
    if counted != megabytes << 20:
        raise SystemExit(f"{engine.name}: {counted} bytes arrived")


def main() -> None:
    """Measure both directions of exec, and an attached run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "megabytes", type=int, nargs="?", default=1000, help="size of each stream (1000)"
    )
    megabytes = parser.parse_args().megabytes
    with (
        tempfile.TemporaryDirectory(prefix="desk-bench-") as scratch,
        desk_engine() as ours,
        docker_engine() as theirs,
    ):
        archive = busybox_archive(Path(scratch))
        engines = (ours, theirs)
        for engine in engines:
            engine.docker("import", "-", "bench", stdin=archive)
            engine.docker("run", "-d", "--name", "sleeper", "bench", "sleep", "3600")
        attached = ("run", "--rm", "--log-driver", "none", "bench")
        for title, measure, command in (
            ("exec, output", out, ("exec", "sleeper")),
            ("exec, input", into, ("exec", "-i", "sleeper")),
            ("attached run, output", out, attached),
        ):
            runs = {e.name: partial(measure, e, megabytes, *command) for e in engines}
            report(f"{title} of {megabytes} MB", interleave(3, runs, warm_up=0), limit=1.0)


if __name__ == "__main__":
    main()
