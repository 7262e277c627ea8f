"""Many containers: a hundred started at once and removed, beside dockerd; hundreds of idle ones.

usage (as root): python -m tests.bench.bench_many [TOGETHER [IDLE]]     (default 100 and 500)

The containers are driven by this program over each engine's socket, without the CLI, whose own
processor time would hide the engines'. Prints: the wall time of starting TOGETHER containers at
once and removing them; for IDLE containers of Desk's engine the memory in all (what the machine
has less available), the time of `docker ps`, and the engine's processor time at rest.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.engines import Engine, busybox_archive, desk_engine, docker_engine, interleave
from tests.bench.engines import report as report_ratio

AT_ONCE = 16
"""Requests on their way at the same time."""
MEMORY_LIMIT_MB = 2560
PS_LIMIT_MS = 150
REST_LIMIT_PERCENT = 1.0
REST_S = 10.0


class _Client(http.client.HTTPConnection):
    """One connection to an engine's socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=300)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Make a request; return the parsed answer. Ends the program where it is refused."""
        data = None if body is None else json.dumps(body)
        self.request(method, f"/v1.41{path}", data, {"Content-Type": "application/json"})
        answer = self.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {content.decode()}")
        return json.loads(content) if content else None


def ask(engine: Engine, method: str, path: str, body: Any = None) -> Any:
    """Make one request on a connection of its own."""
    client = _Client(engine.socket)
    try:
        return client.ask(method, path, body)
    finally:
        client.close()


def start_one(engine: Engine, _: int = 0) -> str:
    """Create and start an idle container; return its ID."""
    body = {"Image": "bench", "Cmd": ["sleep", "3600"]}
    created: str = ask(engine, "POST", "/containers/create", body)["Id"]
    ask(engine, "POST", f"/containers/{created}/start")
    return created


def start(engine: Engine, count: int) -> list[str]:
    """Start ``count`` containers at once; return their IDs."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda number: start_one(engine, number), range(count)))


def remove(engine: Engine, containers: list[str]) -> None:
    """Kill and remove containers at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(
            lambda name: ask(engine, "DELETE", f"/containers/{name}?force=1"), containers
        ):
            pass


def together(engine: Engine, count: int) -> None:
    """Start ``count`` containers at once and remove them."""
    remove(engine, start(engine, count))


def available_mb() -> float:
    """Return what /proc/meminfo says is available."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/meminfo has no MemAvailable")


def processor_s(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def idle(engine: Engine, count: int) -> None:
    """Measure ``count`` idle containers of one engine."""
    before_mb = available_mb()
    begun = time.monotonic()
    containers = start(engine, count)
    took_s = time.monotonic() - begun
    time.sleep(2)
    used_mb = before_mb - available_mb()
    limit_mb = MEMORY_LIMIT_MB * count / 500
    print(
        f"{count} idle containers started in {took_s:.1f} s; {used_mb:.0f} MB in all"
        f" ({used_mb / count:.2f} each), wanted at most {limit_mb:.0f} MB"
    )
    times = []
    for _ in range(15):
        begun = time.perf_counter()
        if len(engine.docker("ps", "-q").split()) != count:
            raise SystemExit(f"ps does not list {count} containers")
        times.append(time.perf_counter() - begun)
    median_ms = statistics.median(times) * 1000
    print(f"docker ps of {count}: {median_ms:.0f} ms, wanted at most {PS_LIMIT_MS} ms")
    time.sleep(2)
    begun_s = processor_s(engine.pid)
    time.sleep(REST_S)
    share = (processor_s(engine.pid) - begun_s) / REST_S * 100
    print(f"the engine at rest: {share:.2f} % of a core, wanted below {REST_LIMIT_PERCENT} %")
    remove(engine, containers)


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "count", type=int, nargs="?", default=100, help="containers started together (100)"
    )
    parser.add_argument(
        "idle_count", type=int, nargs="?", default=500, help="containers that sleep (500)"
    )
    arguments = parser.parse_args()
    count, idle_count = arguments.count, arguments.idle_count
    with tempfile.TemporaryDirectory(prefix="desk-bench-") as scratch:
        archive = busybox_archive(Path(scratch))
        with desk_engine() as ours:
            ours.docker("import", "-", "bench", stdin=archive)
            if idle_count:
                idle(ours, idle_count)
            if count:
                with docker_engine() as theirs:
                    theirs.docker("import", "-", "bench", stdin=archive)
                    runs = {e.name: partial(together, e, count) for e in (ours, theirs)}
                    for engine in (ours, theirs):
                        together(engine, 2)
                    report_ratio(
                        f"{count} containers started at once and removed",
                        interleave(2, runs, warm_up=0),
                        limit=0.2,
                    )


if __name__ == "__main__":
    main()
