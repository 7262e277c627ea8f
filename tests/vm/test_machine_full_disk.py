"""A real machine whose disk is full, and what this computer gets back of it."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine_process import until
from tests.guest_image import guest_image
from tests.laptop import Host

from desk.compose import Desk
from desk.paths import Home
from desk.ssh.session import Session

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]

NAME = "default"
MIB = 1 << 20
FILL = "cat /dev/zero >/var/lib/desk/filler; sync; echo >>/var/lib/desk/filler"


@pytest.fixture(scope="module")
def box(guest_image: Path) -> Iterator[Host]:
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    made = Host(None, home)
    for words in (
        ("machine", "image", "install", str(guest_image)),
        ("machine", "create", "--memory", "768m", "--disk", "1g", "-o", "accelerator=tcg", NAME),
        ("machine", "start", NAME),
    ):
        assert made(*words).code == 0
    try:
        yield made
    finally:
        assert made("machine", "rm", "-f", NAME).code == 0
        shutil.rmtree(home)


def ok(box: Host, *words: str) -> str:
    done = box(*words)
    assert done.code == 0, done
    return done.out


def guest(box: Host, command: str) -> str:
    with Session.connect(Desk(Home(box.home)).manager.endpoint(NAME)) as session:
        done = session.run(command)
    return (done.stdout + done.stderr).decode()


def is_full(box: Host) -> bool:
    return bool(json.loads(ok(box, "info", "-f", "{{json .Warnings}}")))


def test_emptying_the_bin_tells_what_this_computer_got_back(box: Host) -> None:
    disk = box.home / "machines" / NAME / "data.img"
    write = f"dd if=/dev/urandom of=/big bs={MIB} count=64; sync"
    ok(box, "run", "--name", "big", "busybox", "sh", "-c", write)
    ok(box, "rm", "big")
    before = disk.stat().st_blocks * 512
    told = ok(box, "undo", "--empty", "--force").splitlines()
    after = disk.stat().st_blocks * 512
    assert before - after >= 60 * MIB
    assert re.fullmatch(r"Total reclaimed space: 67\.\d+MB", told[0]), told
    assert re.fullmatch(r"This computer got back: \d+\.?\d*MB", told[1]), told
    ok(box, "machine", "stop", NAME)
    ok(box, "machine", "start", NAME)


def test_a_full_disk_lets_the_engine_start_and_delete(box: Host) -> None:
    for name in ("one", "two", "three"):
        ok(box, "run", "-d", "--name", name, "busybox", "sleep", "600")
    ok(box, "volume", "create", "kept")
    assert not is_full(box)
    assert "No space left" in guest(box, FILL)
    assert is_full(box)
    assert "data disk is full" in box("doctor").out
    ok(box, "stop", "-t", "0", "one")
    ok(box, "rm", "one")
    ok(box, "machine", "restart", "--policy-only", NAME)  # starts nothing: there is no room
    assert "No space left" in guest(box, FILL)
    assert ok(box, "ps", "-aq").count("\n") == 2
    ok(box, "rm", "-f", "two")
    ok(box, "volume", "rm", "kept")
    refused = box("run", "--rm", "busybox", "true")
    assert refused.code != 0
    assert "no space left on the disk of the data root" in refused.err
    guest(box, "rm /var/lib/desk/filler")
    until(lambda: not is_full(box))
    assert ok(box, "run", "--rm", "busybox", "echo", "there") == "there\n"
    ok(box, "rm", "-f", "three")
