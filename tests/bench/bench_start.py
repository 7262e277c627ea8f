"""How long the runtime needs to bear a process: create, release, run and exit, in milliseconds.

Run as root from the repository: ``python tests/bench/bench_start.py``; needs busybox-static.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import itertools

from deskd.runtime.client import LauncherRuntime
from tests.engine.runtime_harness import Harness, make_busybox_root, read_all


def main() -> None:
    """Print the fastest and the middle round of each stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=int, nargs="?", default=40, help="starts (40)")
    rounds = parser.parse_args().rounds
    base = Path(tempfile.mkdtemp(prefix="desk-bench-"))
    harness = Harness(base, make_busybox_root(base / "root"))

    async def scenario(runtime: LauncherRuntime) -> list[tuple[float, ...]]:
        rows = []
        for _ in range(rounds):
            plan = harness.plan("true")
            times = [time.perf_counter()]
            process = await runtime.create(plan)
            times.append(time.perf_counter())
            stream = await process.attach(stdin=False, stdout=True, stderr=True)
            times.append(time.perf_counter())
            await process.release()
            times.append(time.perf_counter())
            await read_all(stream)
            await process.wait()
            times.append(time.perf_counter())
            await stream.close()
            await runtime.forget(plan.key)
            rows.append(tuple(1000 * (b - a) for a, b in itertools.pairwise(times)))
        return rows

    try:
        columns = list(zip(*harness.play(scenario), strict=True))
    finally:
        harness.close()
    for name, column in zip(("create", "attach", "release", "run and exit"), columns, strict=True):
        print(f"{name:12}  fastest {min(column):6.2f} ms  middle {median(column):6.2f} ms")


if __name__ == "__main__":
    main()
