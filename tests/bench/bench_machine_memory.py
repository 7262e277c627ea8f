#!/usr/bin/env python3
"""Prints what a machine's memory costs the host: idle, after a container, after a build's cache.

    python -m tests.bench.bench_machine_memory [--image build/guest] [--memory-mib 2048]

Boots one machine under software emulation, and needs some 5 GB of free memory and a quiet computer.
"guest" is the resident part of the mapping that is the guest's memory, "process" all of QEMU.
Exits 1 where a figure is above its limit, which is printed beside it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from desk.compose import Desk
from desk.machine.model import MachineSpec
from desk.paths import Home
from desk.ssh.session import Session
from tests.laptop import Host

PROJECT = Path(__file__).resolve().parent.parent.parent
NAME = "default"
MIB = 1 << 20
HELD_MIB, CACHE_MIB, DIAL_MIB = 1536, 900, 1536
IDLE_MB = 200
GIVEN_BACK_MIB = 100
PATIENCE_S = 300.0
REST_S = 60.0


class Bench:
    """The machine, and the figures that were too large."""

    def __init__(self, desk: Desk, host: Host) -> None:
        self.desk = desk
        self.host = host
        self.too_large: list[str] = []

    def run(self, *words: str) -> str:
        done = self.host(*words)
        if done.code != 0:
            sys.exit(f"{' '.join(words)}: {done.err}")
        return done.out

    def guest_mib(self) -> float:
        live = self.desk.manager.open(NAME).driver.live_memory()
        resident = None if live is None else live.resident_bytes()
        if resident is None:
            sys.exit("what the host pays can be measured on Linux only")
        return resident / MIB

    def process_mib(self) -> float:
        return (self.desk.manager.open(NAME).driver.host_memory_bytes() or 0) / MIB

    def tell(self, what: str, figure: float, unit: str, limit: float | None = None) -> None:
        bound = "" if limit is None else f"   (at most {limit:g})"
        print(f"{what:58}{figure:8.1f} {unit}{bound}", flush=True)
        if limit is not None and figure > limit:
            self.too_large.append(what)


def wait_s(condition: Callable[[], bool]) -> float:
    """Wait for something and return how long it took; after the patience, so much."""
    started = time.monotonic()
    while not condition() and time.monotonic() - started < PATIENCE_S:
        time.sleep(0.1)
    return time.monotonic() - started


def settle(bench: Bench) -> None:
    with Session.connect(bench.desk.manager.endpoint(NAME)) as session:
        wait_s(lambda: session.run("test -e /run/desk-settled").exit_code == 0)
    lowest, since = bench.guest_mib(), time.monotonic()
    while time.monotonic() - since < REST_S:
        now = bench.guest_mib()
        if now < lowest - 1:
            lowest, since = now, time.monotonic()
        time.sleep(0.2)


def hold(bench: Bench, name: str, size_mib: int) -> None:
    fill = f"dd if=/dev/zero of=/m/held bs=1M count={size_mib} && echo full; sleep 3600"
    bench.run("run", "-d", "--name", name, "--tmpfs", "/m:size=8g", "busybox", "sh", "-c", fill)
    wait_s(lambda: "full" in bench.run("logs", name))


def measure(bench: Bench, memory_mib: int) -> None:
    settle(bench)
    idle = bench.guest_mib()
    bench.tell("idle: guest", idle, "MiB", round(IDLE_MB * 1e6 / MIB, 1))
    bench.tell("idle: process", bench.process_mib(), "MiB")

    hold(bench, "brief", HELD_MIB)
    bench.tell(f"a container holds {HELD_MIB} MiB: guest", bench.guest_mib(), "MiB")
    bench.run("kill", "brief")
    took = wait_s(lambda: bench.guest_mib() <= idle + GIVEN_BACK_MIB)
    bench.tell(f"its end: guest within {GIVEN_BACK_MIB} MiB of idle after", took, "s", 15)
    bench.run("rm", "brief")

    write = f"dd if=/dev/zero of=/data/f bs=1M count={CACHE_MIB}; sync; cat /data/f >/dev/null"
    bench.run("run", "--rm", "-v", "cached:/data", "busybox", "sh", "-c", write)
    bench.tell(f"{CACHE_MIB} MiB were written and read: guest", bench.guest_mib(), "MiB")
    took = wait_s(lambda: bench.guest_mib() <= idle + GIVEN_BACK_MIB)
    bench.tell(f"rest: guest within {GIVEN_BACK_MIB} MiB of idle after", took, "s", REST_S)
    bench.run("volume", "rm", "cached")

    bench.run("run", "-d", "--name", "web", "busybox", "sleep", "3600")
    for wanted, limit_s in ((memory_mib + DIAL_MIB, 1.0), (memory_mib, 10.0)):
        started = time.monotonic()
        bench.desk.memory.move(NAME, wanted, lambda _sentence: None)
        took = time.monotonic() - started
        bench.tell(f"the dial to {wanted} MiB, a container running", took, "s", limit_s)
    lower = memory_mib - DIAL_MIB
    if lower >= bench.desk.memory.usage(NAME).least_mib:
        started = time.monotonic()
        bench.desk.memory.move(NAME, lower, lambda _sentence: None)
        bench.tell(f"the dial to {lower} MiB (balloon)", time.monotonic() - started, "s", 10)
    bench.tell("at the end: guest", bench.guest_mib(), "MiB")
    bench.tell("at the end: process", bench.process_mib(), "MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, default=PROJECT / "build" / "guest")
    parser.add_argument("--memory-mib", type=int, default=2048)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    desk = Desk(Home(home))
    spec = MachineSpec(
        NAME,
        memory_mib=arguments.memory_mib,
        image=str(arguments.image.absolute()),
        options={"accelerator": "tcg"},
    )
    desk.manager.create(spec)
    try:
        desk.manager.start(NAME)
        bench = Bench(desk, Host(None, home))
        measure(bench, arguments.memory_mib)
    finally:
        desk.manager.remove(NAME, force=True)
        shutil.rmtree(home)
    for what in bench.too_large:
        print(f"above its limit: {what}")
    return 1 if bench.too_large else 0


if __name__ == "__main__":
    sys.exit(main())
