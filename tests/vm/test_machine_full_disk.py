"""A real machine whose disk is full, and what this computer gets back of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine_process import until
from tests.guest_image import guest_image
from tests.laptop import Laptop, laptop_with_machine

from desk.compose import Desk
from desk.paths import Home
from desk.ssh.session import Session

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]

NAME = "default"
MIB = 1 << 20
FILL = "cat /dev/zero >/var/lib/desk/filler; sync; echo >>/var/lib/desk/filler"


@pytest.fixture(scope="module")
def box(guest_image: Path) -> Iterator[Laptop]:
    with laptop_with_machine(guest_image, disk="1g") as made:
        yield made


def guest(box: Laptop, command: str) -> str:
    with Session.connect(Desk(Home(box.home)).manager.endpoint(NAME)) as session:
        done = session.run(command)
    return (done.stdout + done.stderr).decode()


def is_full(box: Laptop) -> bool:
    return bool(json.loads(box.desk("info", "-f", "{{json .Warnings}}")))


def test_emptying_the_bin_tells_what_this_computer_got_back(box: Laptop) -> None:
    disk = box.home / "machines" / NAME / "data.img"
    box("rm", "-f", "big")  # of a first run that failed
    write = f"dd if=/dev/urandom of=/big bs={MIB} count=64; sync"
    box.desk("run", "--name", "big", "busybox", "sh", "-c", write)
    box.desk("rm", "big")
    before = disk.stat().st_blocks * 512
    told = box.desk("undo", "--empty", "--force").splitlines()
    after = disk.stat().st_blocks * 512
    assert before - after >= 60 * MIB
    assert re.fullmatch(r"Total reclaimed space: 67\.\d+MB", told[0]), told
    assert re.fullmatch(r"This computer got back: \d+\.?\d*MB", told[1]), told
    box.desk("machine", "stop", NAME)
    box.desk("machine", "start", NAME)


def test_a_full_disk_lets_the_engine_start_and_delete(box: Laptop) -> None:
    for name in ("one", "two", "three"):
        box.desk("run", "-d", "--name", name, "busybox", "sleep", "600")
    box.desk("volume", "create", "kept")
    assert not is_full(box)
    assert "No space left" in guest(box, FILL)
    assert is_full(box)
    assert "data disk is full" in box("doctor").out
    box.desk("stop", "-t", "0", "one")
    box.desk("rm", "one")
    box.desk("machine", "restart", "--policy-only", NAME)  # starts nothing: there is no room
    assert "No space left" in guest(box, FILL)
    assert box.desk("ps", "-aq").count("\n") == 2
    box.desk("rm", "-f", "two")
    box.desk("volume", "rm", "kept")
    refused = box("run", "--rm", "busybox", "true")
    assert refused.code != 0
    assert "no space left on the disk of the data root" in refused.err
    guest(box, "rm /var/lib/desk/filler")
    until(lambda: not is_full(box))
    assert box.desk("run", "--rm", "busybox", "echo", "there") == "there\n"
    box.desk("rm", "-f", "three")


def test_each_prune_tells_what_this_computer_got_back(box: Laptop) -> None:
    box.desk("machine", "set", NAME, "engine-opt=bin-age=0")  # what is removed is gone at once
    box.desk("machine", "restart", NAME)
    box("rm", "-f", "big")  # of a first run that failed
    disk = box.home / "machines" / NAME / "data.img"
    write = f"dd if=/dev/urandom of=/big bs={MIB} count=64; cp /big /volume"
    box.desk("run", "--name", "big", "-v", "large:/volume", "busybox", "sh", "-c", write)
    box.desk("commit", "big", "large")
    guest(box, "sync")  # all of it is on the disk, the image too
    for kind, *flags in (["container"], ["volume", "-a"], ["image", "-a"]):
        before = disk.stat().st_blocks * 512
        told = box.desk(kind, "prune", "-f", *flags).splitlines()
        after = disk.stat().st_blocks * 512
        assert before - after >= 60 * MIB, (kind, told)
        assert told[-2].startswith("Total reclaimed space: "), told
        assert re.fullmatch(r"This computer got back: \d+\.?\d*MB", told[-1]), told
