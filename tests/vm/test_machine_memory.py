"""A real machine's memory: moved while containers run, given back when nobody uses it."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.engine_process import until
from tests.guest_image import guest_image
from tests.laptop import Host

from desk.compose import Desk
from desk.machine import process
from desk.machine.memory import MemoryUsage
from desk.paths import Home
from desk.ssh.session import Session

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

MIB = 1 << 20
BOOT_MIB = 640
PATIENCE_S = 240.0


@dataclass
class Box:
    """The machine of this module, as the command line and as the app see it."""

    host: Host
    desk: Desk

    def __call__(self, *words: str, code: int = 0) -> str:
        done = self.host(*words)
        assert done.code == code, done
        return done.out if code == 0 else done.err

    def usage(self) -> MemoryUsage:
        return self.desk.memory.usage("default")

    def paid_mib(self) -> int:
        """Return what the host pays for the guest's memory. The guest is not asked for it: each
        question keeps it from its rest."""
        live = self.desk.manager.open("default").driver.live_memory()
        assert live is not None
        paid = live.resident_bytes()
        assert paid is not None
        return paid // MIB

    def qemu(self) -> process.Process | None:
        return process.recall(self.desk.home.machine("default").qemu_pid)

    def started_at(self, container: str) -> str:
        return self("inspect", "-f", "{{.State.StartedAt}}{{.State.Running}}", container)

    def holder(self, name: str, size_mib: int) -> None:
        """Start a container that holds so much memory."""
        fill = f"dd if=/dev/zero of=/m/held bs=1M count={size_mib} && echo full; sleep 3600"
        self("run", "-d", "--name", name, "--tmpfs", "/m:size=2g", "busybox", "sh", "-c", fill)
        until(lambda: "full" in self("logs", name), PATIENCE_S)


@pytest.fixture(scope="module")
def box(guest_image: Path) -> Iterator[Box]:
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    made = Box(Host(None, home), Desk(Home(home)))
    made("machine", "image", "install", str(guest_image))
    made("machine", "create", "--memory", f"{BOOT_MIB}m", "--disk", "4g", "-o", "accelerator=tcg",
         "default")  # fmt: skip
    try:
        made("machine", "start")
        with Session.connect(made.desk.manager.endpoint("default")) as session:
            # What the boot left in the cache has gone, and memory can be added, once this is there.
            until(lambda: session.run("test -e /run/desk-settled").exit_code == 0, PATIENCE_S)
        yield made
    finally:
        made("machine", "rm", "-f", "default")
        shutil.rmtree(home)


@pytest.fixture(autouse=True)
def _as_before(box: Box) -> Iterator[None]:
    yield
    for container in box("ps", "-aq").split():
        box("rm", "-f", container)
    box("machine", "set", "--memory", f"{BOOT_MIB}m")


def test_more_and_less_while_containers_run(box: Box) -> None:
    qemu, before = box.qemu(), box.usage()
    box.holder("web", 32)
    started = box.started_at("web")
    assert box("machine", "set", "--memory", "1408m") == ""
    more = box.usage()
    assert more.ceiling_mib == 1408
    assert more.total_bytes - before.total_bytes == (1408 - BOOT_MIB) * MIB
    box.holder("large", 900)  # there was no room for it before
    assert box.usage().used_bytes > 900 * MIB
    box("rm", "-f", "large")
    box("machine", "set", "--memory", "512m")
    less = box.usage()
    assert before.total_bytes - less.total_bytes == pytest.approx((BOOT_MIB - 512) * MIB, abs=MIB)
    assert box.started_at("web") == started
    assert box.qemu() == qemu


def test_never_below_what_containers_hold(box: Box) -> None:
    box.holder("hog", 200)
    usage = box.usage()
    assert usage.least_mib > 250
    told = box("machine", "set", "--memory", "256m", code=1)
    assert "for what is running: hog holds 20" in told
    assert "Give it" in told
    assert box.usage().total_bytes == usage.total_bytes
    assert box.desk.manager.inspect("default")["memory_mib"] == BOOT_MIB
    # What was told is enough.
    needed = int(told.split(" needs ")[1].split()[0])
    box("machine", "set", "--memory", f"{needed + 16}m")
    assert box("exec", "hog", "ls", "/m").split() == ["held"]


def test_a_peak_that_fits_no_more_names_the_ceiling_that_will_do(box: Box) -> None:
    box.holder("db", 300)
    box("rm", "-f", "db")
    box.holder("other", 300)
    create = ("create", "--name", "db", "busybox", "true")
    done = box.host(*create)
    assert done.code == 0
    assert done.err.startswith("WARNING: db has held up to 30"), done
    (remedy,) = re.findall(r"`desk (machine set --memory \w+)` gives it more", done.err)
    started = box.host("start", "db")
    assert started.code == 0
    assert remedy in started.err
    box("rm", "db")
    box(*remedy.split())
    done = box.host(*create)
    assert (done.code, done.err) == (0, "")

    heading, *lines, said = box("machine", "advise").splitlines()
    assert heading.startswith("CONTAINER ")
    assert "other" in [line.split()[0] for line in lines]
    ceiling_mib = box.usage().ceiling_mib
    assert said.startswith("What ran at one time (")
    assert "This is weak advice: " in said
    advised = re.findall(r"`desk machine set --memory (\d+)([mg])`", said)
    mib = [int(size) * (1024 if unit == "g" else 1) for size, unit in advised]
    assert mib == [] if "which is right" in said else abs(mib[0] - ceiling_mib) >= 256


def test_what_a_container_held_is_the_hosts_again(box: Box) -> None:
    box.holder("brief", 300)
    held = box.paid_mib()
    assert held > 300
    row = box("machine", "stats", "--format", "{{.Name}} {{.Holders}}")
    assert row.startswith("default brief 30")
    box("rm", "-f", "brief")
    until(lambda: box.paid_mib() < held - 200, PATIENCE_S)


def test_cache_that_nobody_reads_is_the_hosts_again_after_a_rest(box: Box) -> None:
    write = "dd if=/dev/zero of=/data/file bs=1M count=250; sync; cat /data/file >/dev/null"
    box("run", "--rm", "-v", "cached:/data", "busybox", "sh", "-c", write)
    filled = box.usage()
    assert filled.cache_bytes > 200 * MIB
    before = box.paid_mib()
    with Session.connect(box.desk.manager.endpoint("default")) as session:
        # The guest's own waits longer; the test has no such patience.
        started = session.run("(/usr/lib/desk/reclaim 10 >/dev/null 2>&1 & echo $!)")
        try:
            until(lambda: box.paid_mib() < before - 100, PATIENCE_S)
        finally:
            session.run(f"kill {started.stdout.decode().strip()}")
    assert box.usage().cache_bytes < filled.cache_bytes - 100 * MIB
    box("volume", "rm", "cached")


def test_at_rest_small_free_pieces_are_the_hosts_too(box: Box) -> None:
    order = "/sys/module/page_reporting/parameters/page_reporting_order"
    lists = "/proc/sys/vm/percpu_pagelist_high_fraction"
    box.holder("brief", 100)
    box("rm", "-f", "brief")
    with Session.connect(box.desk.manager.endpoint("default")) as session:

        def kernel() -> list[str]:
            time.sleep(6)  # looking is work, and one look in a step of the guest's is little
            return session.run(f"cat {order} {lists}").stdout.decode().split()

        def kept_mib() -> float:
            """What is free in the guest, and the host pays all the same."""
            time.sleep(6)
            told = session.run("cat /proc/zoneinfo /proc/meminfo").stdout.decode()
            there = sum(map(int, re.findall(r"\n +present +(\d+)", told))) * 4
            (free,) = re.findall(r"MemFree: +(\d+) kB", told)
            return box.paid_mib() - (there - int(free)) / 1024

        started = session.run("(/usr/lib/desk/reclaim 10 >/dev/null 2>&1 & echo $!)")
        try:
            until(lambda: kernel() == ["4", "100000"], PATIENCE_S)
            until(lambda: kept_mib() < 14, PATIENCE_S)
            work = "timeout 8 sh -c 'while :; do :; done'"
            until(lambda: (session.run(work), kernel())[1] == ["9", "0"], PATIENCE_S)
        finally:
            session.run(f"kill {started.stdout.decode().strip()}")


def test_the_history_is_told(box: Box) -> None:
    lines = until(lambda: box("machine", "stats", "--history").splitlines()[1:])
    assert all(len(line.split()) == 4 for line in lines)


def test_a_stopped_machine_boots_with_what_was_set(box: Box) -> None:
    box("machine", "stop")
    done = box.host("machine", "set", "--memory", "768m")
    assert (done.code, done.err) == (0, "Machine default has 768 MiB of memory.\n")
    box("machine", "start")
    assert 690 * MIB < box.usage().total_bytes < 768 * MIB
