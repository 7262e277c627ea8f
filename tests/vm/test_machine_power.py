"""A real machine while its computer is on battery: less CPU time, labelled containers frozen."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.engine_process import until
from tests.guest_image import guest_image
from tests.laptop import Host

from desk.agent import spawn
from desk.compose import Desk
from desk.paths import Home
from desk.ssh.session import Session

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE_S = 240.0
LABEL = "desk.power=pause-on-battery"
BUSY = "while :; do :; done"
PERIODS = 20
SUPPLIES = "/sys/class/power_supply"


class BatteryHost(Host):
    """A laptop whose commands, and the agents that they start, see a battery of the test's."""

    @property
    def supplies(self) -> Path:
        return self.home / "power_supply"

    def has_mains(self, *, plugged: bool) -> None:
        for supply, files in {
            "AC0": {"online": str(int(plugged))},
            "BAT0": {"status": "Charging" if plugged else "Discharging", "energy_now": "30",
                     "energy_full": "60", "power_now": "5", "capacity": "50"},
        }.items():  # fmt: skip
            (self.supplies / supply).mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (self.supplies / supply / name).write_text(f"{text}\n")

    def command(self, *words: str) -> list[str]:
        inside = f'mount --bind "$0" {SUPPLIES} && exec "$@"'
        unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inside]
        return [*unshare, str(self.supplies), *super().command(*words)]


@dataclass
class Box:
    """The machine of this module. Each test leaves it running."""

    host: BatteryHost
    desk: Desk

    def __call__(self, *words: str, code: int = 0) -> str:
        done = self.host(*words)
        assert done.code == code, done
        return done.out if code == 0 else done.err

    def guest(self, command: str) -> str:
        with Session.connect(self.desk.manager.endpoint("default")) as session:
            done = session.run(command)
        assert done.exit_code == 0, (command, done.stdout, done.stderr)
        return done.stdout.decode().strip()

    def limit(self) -> str:
        return self.guest("cat /sys/fs/cgroup/desk/cpu.max")

    def cpu(self) -> dict[str, int]:
        """Return the kernel's own account of all containers' CPU time."""
        pairs = (
            line.split() for line in self.guest("cat /sys/fs/cgroup/desk/cpu.stat").split("\n")
        )
        return {name: int(value) for name, value in pairs}

    def power(self, *words: str) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self("machine", "power", *words, "--format", "json"))
        return row

    def states(self) -> dict[str, str]:
        lines = self("ps", "-a", "--format", "{{.Names}} {{.State}}").splitlines()
        return dict(line.split() for line in lines)

    def agent(self) -> spawn.AgentStatus:
        return spawn.status(self.desk.home.machine("default"))


@pytest.fixture(scope="module")
def box(guest_image: Path) -> Iterator[Box]:
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    made = Box(BatteryHost(None, home), Desk(Home(home)))
    made.host.has_mains(plugged=True)
    made("machine", "image", "install", str(guest_image))
    made("machine", "create", "--memory", "640m", "--disk", "2g", "-o", "accelerator=tcg",
         "default")  # fmt: skip
    try:
        made("machine", "start")
        for name in ("worker", "wanted"):
            made("run", "-d", "--name", name, "--label", LABEL, "busybox", "sleep", "3600")
        for name in ("busy", "busier"):
            made("run", "-d", "--name", name, "busybox", "sh", "-c", BUSY)
        made("run", "-d", "--name", "own", "--label", LABEL, "busybox", "sleep", "3600")
        made("pause", "own")
        yield made
    finally:
        made("machine", "rm", "-f", "default")
        shutil.rmtree(home)


def test_battery_caps_and_freezes_at_once(box: Box) -> None:
    before = box.power()
    assert (before["BatteryCPUs"], before["CPUs"], before["Frozen"]) == ("all", "all", "")
    assert (before["Source"], before["Charge"]) == ("mains", "50%")
    qemu, agent = box.desk.home.machine("default").qemu_pid.read_text(), box.agent().pid
    row = box.power("--battery-cpus", "0.5", "--source", "battery")
    assert (row["Source"], row["SourceSetting"]) == ("battery (set)", "battery")
    assert (row["BatteryCPUs"], row["CPUs"], row["Frozen"]) == ("0.5", "0.5", "wanted, worker")
    assert box.limit() == "50000 100000"
    assert box.states() == {
        "worker": "paused", "wanted": "paused", "own": "paused",
        "busy": "running", "busier": "running",
    }  # fmt: skip
    # In each of the kernel's periods two loops got no more than the half of one CPU.
    first = box.cpu()
    last = until(
        lambda: (c := box.cpu())["nr_periods"] >= first["nr_periods"] + PERIODS and c, PATIENCE_S
    )
    assert last["nr_throttled"] > first["nr_throttled"]
    periods = last["nr_periods"] - first["nr_periods"]
    assert last["usage_usec"] - first["usage_usec"] <= 50_000 * (periods + 2)
    # Neither the machine nor its agent, which holds everybody's connections, was restarted.
    assert (box.desk.home.machine("default").qemu_pid.read_text(), box.agent().pid) == (qemu, agent)
    told = box.host("machine", "status")
    assert "on battery: containers have at most 0.5 CPUs together" in told.err
    assert "runs on battery" in box.desk.home.machine("default").agent_log.read_text()
    events = box("events", "--since", "1h", "--until", "0s", "--filter", "event=power")
    assert "source=battery" in events
    assert "frozen=wanted,worker" in events or "frozen=worker,wanted" in events
    assert "[power]" in box("machine", "config", "--show")


def test_it_outlives_agent_engine_and_park(box: Box) -> None:
    box("unpause", "wanted")
    expected = {
        "worker": "paused", "wanted": "running", "own": "paused",
        "busy": "running", "busier": "running",
    }  # fmt: skip
    pid = box.agent().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert box.states() == expected  # by an agent that took its place
    until(lambda: (box.agent().details.get("power") or {}).get("settled"), PATIENCE_S)
    row = box.power()
    assert (row["CPUs"], row["Frozen"], row["Spared"]) == ("0.5", "worker", "wanted")

    engine = box.guest("cat /run/desk/engine.pid")
    box.guest(f"kill -9 {engine}")
    # The next one knows what is frozen, and learns from the agent what the power is.
    until(lambda: box.guest("cat /run/desk/engine.pid || true") not in ("", engine), PATIENCE_S)
    until(lambda: box.host("version").code == 0, PATIENCE_S)
    until(lambda: box.power()["Spared"] == "wanted", PATIENCE_S)
    assert box.states() == expected
    assert box.limit() == "50000 100000"

    box("machine", "park")
    assert box.desk.power.look("default").now is None
    box("machine", "start")
    assert box.states() == expected
    assert box.limit() == "50000 100000"


def test_a_restart_gives_back_what_ran_and_mains_undoes_all(box: Box) -> None:
    report = box.host("machine", "restart")
    assert report.code == 0, report
    until(lambda: box.power()["Frozen"] == "worker", PATIENCE_S)
    assert box.limit() == "50000 100000"
    assert box.states() == {
        "worker": "paused", "wanted": "running", "own": "paused",
        "busy": "running", "busier": "running",
    }  # fmt: skip
    row = box.power("--source", "mains")
    assert (row["Source"], row["BatteryCPUs"]) == ("mains (set)", "0.5")
    assert (row["CPUs"], row["Frozen"]) == ("all", "")
    assert box.limit() == "max 100000"
    assert box.states() == {
        "worker": "running", "wanted": "running", "own": "paused",
        "busy": "running", "busier": "running",
    }  # fmt: skip
    row = box.power("--source", "auto", "--battery-cpus", "off")
    assert (row["SourceSetting"], row["BatteryCPUs"], row["CPUs"]) == ("auto", "all", "all")
    assert row["Source"] == "mains"


def test_the_laptop_itself_tells_when_it_is_unplugged(box: Box) -> None:
    box("machine", "set", "battery-cpus=1.5")
    box.host.has_mains(plugged=False)
    until(lambda: box.power()["Frozen"] == "wanted, worker", PATIENCE_S)
    row = box.power()
    assert (row["Source"], row["Charge"], row["CPUs"]) == ("battery", "50%", "1.5")
    assert box.limit() == "150000 100000"
    assert box.states()["own"] == "paused"
    box.host.has_mains(plugged=True)
    until(lambda: box.power()["Frozen"] == "", PATIENCE_S)
    assert box.limit() == "max 100000"
    assert box.states() == {
        "worker": "running", "wanted": "running", "own": "paused",
        "busy": "running", "busier": "running",
    }  # fmt: skip
    assert "(charge 50%)" in box.desk.home.machine("default").agent_log.read_text()


def test_wrong_values_are_refused(box: Box) -> None:
    assert "battery-cpus cannot be 'many'" in box("machine", "power", "--battery-cpus", "many",
                                                  code=125)  # fmt: skip
    assert "power-source cannot be 'sun'" in box("machine", "power", "--source", "sun", code=125)
    assert box.power()["SourceSetting"] == "auto"
