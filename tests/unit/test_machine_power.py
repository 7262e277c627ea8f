"""The power policy on this computer: what is read, what the engine is told, what can be set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.fakes.machine_driver import fake_machines

from desk.agent import power
from desk.agent.power import HostPower, PowerWatch, Source, read_host_power
from desk.agent.spec import PowerWishes
from desk.cli.commands.machine_power import power_row
from desk.errors import EngineError, EngineUnreachable, UsageError
from desk.machine.disks import MachineDisks
from desk.machine.drivers.qemu import QemuDriver
from desk.machine.drivers.ssh_host import SshHostDriver
from desk.machine.manager import Manager
from desk.machine.memory import MemoryDial
from desk.machine.model import MachineSpec
from desk.machine.power import MachinePower, PowerControl, PowerInForce
from desk.machine.power_options import check_power, power_wishes
from desk.machine.settings_change import MachineSettings, Wishes
from desk.machine.settings_file import SettingsMistake, follow, parse, render

FILE = Path("m.toml")
SPEC = MachineSpec("box")
ON_BATTERY, ON_MAINS = HostPower(Source.BATTERY, 57.0), HostPower(Source.MAINS, 80.0)


# --- this computer ------------------------------------------------------------------------------


@pytest.fixture
def supplies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a folder of power supplies as Linux has it, and have it read instead of this one's."""
    folder = tmp_path / "power_supply"
    folder.mkdir()
    monkeypatch.setattr(psutil._pslinux, "POWER_SUPPLY_PATH", str(folder))

    def make(name: str, **files: str) -> None:
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(f"{text}\n")

    return make


def battery(status: str) -> dict[str, str]:
    return {"type": "Battery", "energy_now": "30", "energy_full": "60", "power_now": "5",
            "status": status, "capacity": "50"}  # fmt: skip


def test_a_laptop_tells_source_and_charge(supplies: Callable[..., None]) -> None:
    supplies("BAT0", **battery("Discharging"))
    assert read_host_power() == HostPower(Source.BATTERY, 50.0)
    supplies("AC0", online="1")
    assert read_host_power() == HostPower(Source.MAINS, 50.0)


def test_without_a_battery_it_is_mains(supplies: Callable[..., None]) -> None:
    assert read_host_power() == HostPower(Source.MAINS)
    supplies("AC0", online="1")
    assert read_host_power() == HostPower(Source.MAINS)


def test_what_cannot_be_read_is_not_known(
    supplies: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supplies("BAT0", **battery("Unknown"))
    assert read_host_power() == HostPower(Source.UNKNOWN, 50.0)
    monkeypatch.setattr(psutil._pslinux, "POWER_SUPPLY_PATH", str(tmp_path / "none"))
    assert read_host_power() == HostPower(Source.UNKNOWN)
    monkeypatch.delattr(psutil, "sensors_battery")
    assert read_host_power() == HostPower(Source.UNKNOWN)


# --- the agent ----------------------------------------------------------------------------------


class Laptop:
    """What a ``PowerWatch`` reads and whom it tells."""

    def __init__(self, wishes: PowerWishes = PowerWishes(nano_cpus=10**9)) -> None:  # noqa: B008
        self.host = ON_MAINS
        self.told: list[Mapping[str, object]] = []
        self.error: EngineError | None = None
        self.frozen: list[dict[str, str]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.watch = PowerWatch(wishes, self._tell, lambda: self.host)

    def _tell(self, report: Mapping[str, object]) -> Mapping[str, Any]:
        self.told.append(dict(report))
        self.meanwhile()
        if self.error is not None:
            raise self.error
        on_battery = report["Source"] == "battery"
        return {
            "NanoCpus": report["NanoCpus"] if on_battery else 0,
            "Frozen": self.frozen if on_battery else [],
            "Problem": "",
        }

    def sources(self) -> list[object]:
        self.watch.look()
        return [report["Source"] for report in self.told]


def test_the_engine_is_told_of_changes_and_on_battery_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger=power.__name__)
    laptop = Laptop()
    assert laptop.sources() == laptop.sources() == ["mains"]
    laptop.host, laptop.frozen = ON_BATTERY, [{"Id": "1", "Name": "worker"}]
    monkeypatch.setattr(power, "_REPEAT_S", 3600.0)
    assert laptop.sources() == laptop.sources() == ["mains", "battery"]
    monkeypatch.setattr(power, "_REPEAT_S", 0.0)
    assert laptop.sources() == ["mains", "battery", "battery"]
    laptop.host = ON_MAINS
    assert laptop.sources() == laptop.sources() == ["mains", "battery", "battery", "mains"]
    assert [record.getMessage() for record in caplog.records] == [
        "the computer runs on mains: containers have all CPUs together; frozen: none (charge 80%)",
        "the computer runs on battery: containers have at most 1 CPU together; frozen: worker"
        " (charge 57%)",
        "the computer runs on mains: containers have all CPUs together; frozen: none (charge 80%)",
    ]


def test_a_new_connection_and_other_wishes_are_told_at_once() -> None:
    laptop = Laptop()
    assert laptop.sources() == ["mains"]
    laptop.watch.connected()
    assert not laptop.watch.describe()["settled"]
    assert laptop.sources() == ["mains", "mains"]
    laptop.watch.wish(PowerWishes("battery", 5 * 10**8))
    assert laptop.sources() == ["mains", "mains", "battery"]
    assert laptop.told[-1] == {"Source": "battery", "NanoCpus": 5 * 10**8}
    described = laptop.watch.describe()
    assert (described["source"], described["charge_percent"]) == ("battery", 80.0)
    assert described["settled"]
    laptop.host = ON_BATTERY
    laptop.watch.wish(PowerWishes("mains"))
    assert laptop.sources()[-1] == "mains"


def test_an_engine_that_comes_while_another_is_told_is_told_too() -> None:
    laptop = Laptop()
    laptop.meanwhile = laptop.watch.connected
    assert laptop.sources() == ["mains"]
    assert not laptop.watch.describe()["settled"]
    laptop.meanwhile = lambda: None
    assert laptop.sources() == laptop.sources() == ["mains", "mains"]
    assert laptop.watch.describe()["settled"]


def test_what_was_not_told_is_tried_again() -> None:
    laptop = Laptop()
    laptop.error = EngineUnreachable("it is away")
    assert laptop.sources() == ["mains"]
    assert laptop.sources() == ["mains", "mains"]
    described = laptop.watch.describe()
    assert (described["settled"], described["problem"]) == (False, "it is away")
    laptop.error = None
    assert laptop.sources() == laptop.sources() == ["mains"] * 3
    assert (laptop.watch.describe()["problem"], laptop.watch.describe()["settled"]) == ("", True)


def test_an_older_engine_is_asked_once() -> None:
    laptop = Laptop()
    laptop.error = EngineError("page not found", status=404)
    assert laptop.sources() == laptop.sources() == ["mains"]
    assert "older" in str(laptop.watch.describe()["problem"])


def test_the_thread_looks_by_itself_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "_POLL_S", 0.0)
    laptop = Laptop()
    laptop.watch.start()
    laptop.host = ON_BATTERY
    while {"Source": "battery", "NanoCpus": 10**9} not in laptop.told:
        pass
    laptop.watch.close()
    laptop.watch.close()


# --- settings -----------------------------------------------------------------------------------


def test_options_become_wishes() -> None:
    assert power_wishes(SPEC) == PowerWishes("auto", 0)
    options = {"battery_cpus": "1.5", "power_source": "battery"}
    check_power(options)
    assert power_wishes(replace(SPEC, options=options)) == PowerWishes("battery", 1_500_000_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [("battery_cpus", v) for v in ("0", "-1", "0.001", "many", "nan", "inf")]
    + [("power_source", v) for v in ("sun", "Battery", "unknown")],
)
def test_impossible_values_are_named(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{name.replace('_', '-')} cannot be '{value}'") as caught:
        check_power({name: value})
    assert caught.value.hint


def test_the_settings_file_has_them() -> None:
    features = QemuDriver.features
    text = render(SPEC, features)
    assert "[power]" in text
    assert "# battery-cpus = 1.5\n" in text
    chosen = replace(SPEC, options={"battery_cpus": "0.5", "power_source": "mains"})
    assert parse(render(chosen, features), FILE, SPEC, features) == chosen
    assert "battery-cpus = 0.5\n" in follow(text, FILE, SPEC, chosen)
    assert "[power]" not in render(SPEC, SshHostDriver.features)


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        ('battery-cpus = "1"', "2:16", "battery-cpus is not a number of CPUs"),
        ("battery-cpus = true", "2:16", "battery-cpus is not a number of CPUs"),
        ("battery-cpus = 0", "2:16", "battery-cpus cannot be '0'"),
        ('source = "sun"', "2:10", "power-source cannot be 'sun'"),
        ("bateri = 1", "2:1", "there is no setting bateri"),
    ],
)
def test_mistakes_have_their_place(line: str, place: str, words: str) -> None:
    with pytest.raises(SettingsMistake) as caught:
        parse(f"[power]\n{line}\n", FILE, SPEC, QemuDriver.features)
    assert caught.value.text.startswith(f"m.toml:{place}: {words}")


@pytest.fixture
def manager() -> Iterator[Manager]:
    with fake_machines() as manager:
        manager.create(MachineSpec("box", "fake", memory_mib=512, cpus=2, disk_gib=1))
        yield manager


def test_a_machine_elsewhere_follows_no_battery(manager: Manager) -> None:
    settings = MachineSettings(manager, MemoryDial(manager), MachineDisks(manager))
    control = PowerControl(manager, settings, lambda: ON_BATTERY)
    with pytest.raises(UsageError, match="machine box is a Linux of its own"):
        control.look("box")
    with pytest.raises(UsageError, match="machine box is a Linux of its own"):
        control.set("box", lambda _: None, battery_cpus="1")
    with pytest.raises(UsageError, match="battery-cpus cannot be 'x'"):
        settings.set("box", Wishes({"battery_cpus": "x"}), lambda _: None)
    assert manager.open("box").record.spec.options == {}


# --- what a person sees -------------------------------------------------------------------------


def test_the_row_says_what_counts_and_what_is_in_force() -> None:
    now = PowerInForce(cpus=1.0, frozen=("a", "b"), spared=("c",), problem="")
    row = power_row(MachinePower("m", ON_BATTERY, "auto", 1.0, now))
    assert row == {
        "BatteryCPUs": "1", "CPUs": "1", "Charge": "57%", "Frozen": "a, b",
        "Label": "desk.power=pause-on-battery", "Name": "m", "Source": "battery",
        "SourceSetting": "auto", "Spared": "c",
    }  # fmt: skip
    off = power_row(MachinePower("m", HostPower(Source.MAINS), "battery", None, None))
    assert (off["Source"], off["Charge"], off["BatteryCPUs"]) == ("battery (set)", "", "all")
    assert (off["CPUs"], off["Frozen"], off["Spared"]) == ("", "", "")
