"""A container that writes log lines as fast as it can, deskd beside dockerd.

usage (as root): python -m tests.bench.bench_logs [MEGABYTES]     (default 100)

Prints the time until the writer has ended, checks that the log has every line, and measures the
memory of Desk's engine and monitor while a reader of the log (`docker logs`) stands still.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.bench.bench_memory import memory_mb, tree
from tests.bench.engines import (
    Engine,
    busybox_archive,
    desk_engine,
    docker_cli,
    docker_engine,
    interleave,
    report,
)

LINE = "a log line of eighty bytes, as programs write them, with nothing special in it."
GROWTH_LIMIT_MB = 16


def write(engine: Engine, megabytes: int) -> None:
    """Run a container that writes; wait for its end; check that no line was lost."""
    lines = megabytes * 1_000_000 // (len(LINE) + 1)
    command = f"yes '{LINE}' | head -n {lines}"
    name = engine.docker("run", "-d", "bench", "sh", "-c", command).strip()
    code = engine.docker("wait", name).strip()
    if code != "0":
        raise SystemExit(f"{engine.name}: the writer ended with {code}")
    found = count_lines(engine, name)
    if found != lines:
        raise SystemExit(f"{engine.name}: {found} of {lines} lines are in the log")
    engine.docker("rm", name)


def count_lines(engine: Engine, name: str) -> int:
    """Count the lines of a container's log file."""
    path = Path(engine.docker("inspect", "--format", "{{.LogPath}}", name).strip())
    count = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            count += block.count(b"\n")
    return count


def slow_reader(engine: Engine, megabytes: int) -> None:
    """Measure an engine's memory while `docker logs -f` is stopped in its middle."""
    lines = megabytes * 1_000_000 // (len(LINE) + 1)
    resting = _all_memory_mb(engine)
    command = f"yes '{LINE}' | head -n {lines}"
    name = engine.docker("run", "-d", "bench", "sh", "-c", command).strip()
    argv = [docker_cli(), "-H", f"unix://{engine.socket}", "logs", "-f", name]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
        peak = resting
        while engine.docker("inspect", "--format", "{{.State.Running}}", name).strip() == "true":
            peak = max(peak, _all_memory_mb(engine))
            time.sleep(0.1)
        peak = max(peak, _all_memory_mb(engine))
        if reader.stdout is None:
            raise SystemExit("the reader has no output")
        read = 0
        while block := reader.stdout.read(1 << 20):
            read += block.count(b"\n")
    if read != lines:
        raise SystemExit(f"the slow reader got {read} of {lines} lines")
    engine.docker("rm", name)
    print(
        f"{engine.name}: {peak - resting:.1f} MB more than at rest while a reader of"
        f" {megabytes} MB stands still, wanted at most {GROWTH_LIMIT_MB} MB; all lines came"
    )


def _all_memory_mb(engine: Engine) -> float:
    total = 0.0
    for pid in tree(engine.pid):
        try:
            total += memory_mb(pid, "Private_Dirty", "Private_Clean")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def main() -> None:
    """Measure throughput of both engines and the memory of Desk's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("megabytes", type=int, nargs="?", default=100, help="size of the log (100)")
    megabytes = parser.parse_args().megabytes
    with (
        tempfile.TemporaryDirectory(prefix="desk-bench-") as scratch,
        desk_engine() as ours,
        docker_engine() as theirs,
    ):
        archive = busybox_archive(Path(scratch))
        for engine in (ours, theirs):
            engine.docker("import", "-", "bench", stdin=archive)
        runs = {e.name: partial(write, e, megabytes) for e in (ours, theirs)}
        report(f"a container writing {megabytes} MB of log lines",
               interleave(3, runs, warm_up=0), limit=1.0)  # fmt: skip
        slow_reader(ours, megabytes)


if __name__ == "__main__":
    main()
