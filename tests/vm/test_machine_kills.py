"""A machine whose parts are killed at random moments under load: the next command works, and what
an answer said is there stays there.

``DESK_TEST_KILLS`` is how often something is killed (4 unless said), ``DESK_TEST_SEED`` the seed of
the moments; both are in the text of a failure.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.guest_image import guest_image
from tests.laptop import Laptop, laptop_with_machine

from desk.compose import Desk
from desk.engine.client import EngineClient
from desk.engine.transport import UnixTransport
from desk.errors import DeskError
from desk.machine import process
from desk.paths import Home
from desk.ssh.session import Session

__all__ = ["guest_image"]

KILLS = int(os.environ.get("DESK_TEST_KILLS", "4"))
SEED = int(os.environ.get("DESK_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
NAME = "default"
VICTIMS = ("qemu", "agent", "sshd", "engine")
LONGEST_PAUSE_S = 4.0
WRITE = "echo {0} >/data/note && echo {0} >/note && sync -f /note"

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(300 + 60 * KILLS)]


@pytest.fixture(scope="module")
def box(guest_image: Path) -> Iterator[Laptop]:
    with laptop_with_machine(guest_image, memory="768m") as made:
        yield made


@dataclass
class Answered:
    """What the engine said is there; only the load adds to it."""

    volumes: list[str] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)  # numbers of runs that brought it to the disk

    def counts(self) -> tuple[int, int, int, int]:
        return len(self.volumes), len(self.containers), len(self.images), len(self.written)


class Load:
    """Makes volumes, containers that write, and images of them, one after the other."""

    def __init__(self, box: Laptop) -> None:
        self._socket = box.home / "machines" / NAME / "engine.sock"
        self.answered = Answered()
        self.errors: list[BaseException] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        self._thread.join(120)

    def _run(self) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            try:
                # Nobody waits for what was lost: a request that was cut off is given up.
                with EngineClient(UnixTransport(self._socket), timeout_s=20) as client:
                    self._once(client, str(number))
            except DeskError:
                self._stopping.wait(0.1)
            except BaseException as error:  # told by the test
                self.errors.append(error)
                raise

    def _once(self, client: EngineClient, number: str) -> None:
        volume, container, image = f"volume{number}", f"container{number}", f"image{number}"
        client.volumes.create({"Name": volume})
        self.answered.volumes.append(volume)
        client.containers.create(
            {
                "Image": "busybox",
                "Cmd": ["sh", "-c", WRITE.format(number)],
                "HostConfig": {"Binds": [f"{volume}:/data"]},
            },
            name=container,
        )
        self.answered.containers.append(container)
        client.containers.start(container)
        if client.containers.wait(container).code == 0:
            self.answered.written.append(number)
        client.containers.commit(container, repository=image, tag="latest")
        self.answered.images.append(image)


def kill(box: Laptop, victim: str) -> None:
    """Kill one part of the machine with SIGKILL."""
    paths = Home(box.home).machine(NAME)
    if victim in ("qemu", "agent"):
        running = process.recall(paths.qemu_pid if victim == "qemu" else paths.agent_pid)
        assert running is not None, victim
        running.kill()
        return
    command = {
        "sshd": "killall -9 sshd sshd-session",
        "engine": "kill -9 $(cat /run/desk/engine.pid)",
    }[victim]
    with (
        contextlib.suppress(DeskError),  # sshd takes the answer with it
        Session.connect(Desk(Home(box.home)).manager.endpoint(NAME)) as session,
    ):
        session.run(command, timeout_s=20)


def lost(box: Laptop, answered: Answered, counts: tuple[int, int, int, int]) -> list[str]:
    """Return what was there before and is not now."""
    volumes, containers, images, _ = counts
    known = {
        "volume": set(box.desk("volume", "ls", "-q").split()),
        "container": set(box.desk("ps", "-a", "--format", "{{.Names}}").split()),
        "image": set(box.desk("images", "--format", "{{.Repository}}").split()),
    }
    wanted = {
        "volume": answered.volumes[:volumes],
        "container": answered.containers[:containers],
        "image": answered.images[:images],
    }
    return [
        f"{kind} {name}"
        for kind, names in wanted.items()
        for name in names
        if name not in known[kind]
    ]


def test_the_next_command_works_and_nothing_is_lost(box: Laptop) -> None:
    chance = random.Random(SEED)
    where = f"DESK_TEST_KILLS={KILLS} DESK_TEST_SEED={SEED}"
    with Load(box) as load:
        for turn in range(KILLS):
            victim = VICTIMS[turn % len(VICTIMS)]
            time.sleep(chance.uniform(0, LONGEST_PAUSE_S))
            # What comes while the victim is being killed may have been answered or not.
            counts = load.answered.counts()
            kill(box, victim)
            told = f"{where}: kill {turn} ({victim})"
            done = box("run", "--rm", "busybox", "echo", "well")
            assert (done.code, done.out) == (0, "well\n"), f"{told}: {done}"
            assert not lost(box, load.answered, counts), told
        assert not load.errors, where
    answered = load.answered
    assert len(answered.written) >= KILLS // 2, f"{where}: {answered.counts()}"
    for number in answered.written:
        read = ("run", "--rm", "-v", f"volume{number}:/data", "busybox", "cat", "/data/note")
        assert box.desk(*read).split() == [number], where
    for image in answered.images:
        if (number := image.removeprefix("image")) in answered.written:
            assert box.desk("run", "--rm", image, "cat", "/note").split() == [number], where
    box.desk("system", "check", "--deep")  # its exit code tells of anything that is wrong
