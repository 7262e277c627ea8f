"""Memory of deskd at rest and of one running container's monitor.

usage (as root): python -m tests.bench.bench_memory
Prints the resident memory of all engine processes (limit 80 MB) and the private memory of a
monitor (limit 6 MB), read from /proc/PID/smaps_rollup.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.bench.engines import busybox_archive, desk_engine

AT_REST_LIMIT_MB = 80
MONITOR_LIMIT_MB = 6


def tree(pid: int) -> list[int]:
    """Return ``pid`` and all its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found.extend(tree(int(child)))
    return found


def memory_mb(pid: int, *names: str) -> float:
    """Sum the fields ``names`` of smaps_rollup of ``pid``, in megabytes."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0])
    return sum(fields[name] for name in names) / 1024


def main() -> None:
    """Measure an engine that has run a container, at rest and with one running."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="desk-bench-") as scratch, desk_engine() as ours:
        ours.docker("import", "-", "bench", stdin=busybox_archive(Path(scratch)))
        fresh = tree(ours.pid)
        print("fresh engine:", _describe(fresh))
        ours.docker("run", "--rm", "bench", "true")
        time.sleep(2)
        rest = tree(ours.pid)
        print(f"at rest after a run: {_describe(rest)}, wanted below {AT_REST_LIMIT_MB} MB")
        before = set(rest)
        ours.docker("run", "-d", "bench", "sleep", "600")
        time.sleep(1)
        for pid in sorted(set(tree(ours.pid)) - before):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            private = memory_mb(pid, "Private_Clean", "Private_Dirty")
            print(f"process {name}: private {private:.1f} MB (monitor: below {MONITOR_LIMIT_MB})")


def _describe(pids: list[int]) -> str:
    rss = sum(memory_mb(pid, "Rss") for pid in pids)
    pss = sum(memory_mb(pid, "Pss") for pid in pids)
    return f"{len(pids)} processes, resident {rss:.1f} MB (proportional {pss:.1f} MB)"


if __name__ == "__main__":
    main()
