"""What `desk ps` takes through agent and SSH beside the docker CLI at a local engine's socket.

    python -m tests.bench.bench_ps [--image build/guest] [--rounds 20]

As root. Both engines are Desk's, with three running containers: one in a machine under software
emulation, one on this computer, which `docker ps` asks. The two commands alternate; the medians
count. Exits 1 where `desk ps` is more than 60 ms above.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cli_process import DESK
from tests.engine_process import running_engine
from tests.laptop import laptop_with_machine

PROJECT = Path(__file__).resolve().parent.parent.parent
LIMIT_MS = 60
CONTAINERS = 3
WARM_UP = 3


def measure_ms(argv: Sequence[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    took_ms = (time.perf_counter() - started) * 1e3
    assert done.stdout.count("\n") == CONTAINERS + 1, done.stdout
    return took_ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, default=PROJECT / "build" / "guest")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    with (
        running_engine() as engine,
        laptop_with_machine(arguments.image.absolute()) as laptop,
    ):
        for number in range(CONTAINERS):
            engine.api.run("sleep", "3600", name=f"c{number}")
            laptop.desk("run", "-d", "--name", f"c{number}", "busybox", "sleep", "3600")
        commands = {
            "desk ps": [DESK, "ps"],
            "docker ps": ["docker", "-H", f"unix://{engine.socket}", "ps"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(WARM_UP + arguments.rounds):
            for name, argv in commands.items():
                took_ms = measure_ms(argv, laptop.environment)
                if turn >= WARM_UP:
                    times[name].append(took_ms)
    ours, theirs = (statistics.median(times[name]) for name in ("desk ps", "docker ps"))
    print(f"desk ps {ours:.0f} ms, docker ps {theirs:.0f} ms, above {ours - theirs:.0f} ms")
    return int(ours - theirs > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
