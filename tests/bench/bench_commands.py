"""What looking at machines takes, `desk machine ls` and its like, beyond the start of Python.

usage: python -m tests.bench.bench_commands [ROUNDS]     (default 15)

Nothing runs and nothing is started: three machines stand in an empty DESK_HOME, two of them of the
driver qemu. Prints for each command the median of the wall time and the least processor time, each
less what `python -c pass` of the same run takes. The limit is 100 ms on a computer that is idle.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

LIMIT_MS = 100
COMMANDS = (
    ("machine", "ls"),
    ("machine", "ls", "-q"),
    ("machine", "status", "one"),
    ("machine", "url", "one"),
    ("machine", "ip", "one"),
    ("machine", "config", "one"),
    ("machine", "inspect", "one"),
    ("machine", "active"),
)
MAIN = "import sys; sys.argv[0] = 'desk'\nfrom desk.cli.main import main; main()"


def make_machines(home: Path) -> None:
    """Write the records of stopped machines; what else belongs to one is not looked at."""
    for name, driver in (("one", "qemu"), ("two", "qemu"), ("three", "local")):
        directory = home / "machines" / name
        directory.mkdir(parents=True)
        record = {
            "format": 1, "name": name, "driver": driver, "memory_mib": 2048, "cpus": 2,
            "disk_gib": 60, "image": "", "options": {}, "created_at": "2026-01-01T00:00:00Z",
            "facts": {"ssh_port": "20200"},
        }  # fmt: skip
        (directory / "machine.json").write_text(json.dumps(record), "utf-8")
    (home / "settings.json").write_text('{"format": 1, "active_machine": "one"}', "utf-8")


def measure(argv: Sequence[str], environment: dict[str, str], rounds: int) -> tuple[float, float]:
    """Return the median wall time and the least processor time in ms."""
    walls, processors = [], []
    for _ in range(rounds):
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(argv, env=environment, capture_output=True, check=False)
        walls.append(time.perf_counter() - begun)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processors.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(argv[3:])}: {done.stderr.decode()}")
    return statistics.median(walls) * 1000, min(processors) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=int, nargs="?", default=15)
    rounds = parser.parse_args().rounds
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER", "DESK", "PYTHON"))}
    with tempfile.TemporaryDirectory(prefix="desk-bench-") as directory:
        make_machines(Path(directory))
        # Compiled once, as an installed Desk is.
        cache = str(Path(directory) / "compiled")
        environment = {**kept, "DESK_HOME": directory, "PYTHONPYCACHEPREFIX": cache}
        wall_ms, processor_ms = measure([sys.executable, "-c", "pass"], environment, rounds)
        print(f"python itself: {wall_ms:.0f} ms, of the processor {processor_ms:.0f} ms")
        for words in COMMANDS:
            argv = [sys.executable, "-c", MAIN, *words]
            measure(argv, environment, 1)
            own_wall_ms, own_processor_ms = measure(argv, environment, rounds)
            over_ms = own_wall_ms - wall_ms
            verdict = "ok" if over_ms <= LIMIT_MS else "slow"
            print(
                f"desk {' '.join(words):22} {over_ms:6.0f} ms more, of the processor"
                f" {own_processor_ms - processor_ms:4.0f} ms (limit {LIMIT_MS}: {verdict})"
            )


if __name__ == "__main__":
    main()
