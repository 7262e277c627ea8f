"""The machine page about the battery: it shows what is in force, and changes it by clicks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from PySide6.QtCore import Qt
from pytestqt.qtbot import QtBot

from desk.agent.power import HostPower, Source
from desk.errors import DeskError, UsageError
from desk.gui.stores.power import PowerStore
from desk.gui.tasks import TaskRunner
from desk.gui.views.power_card import PowerCard, in_force_text
from desk.machine.power import MachinePower, PowerInForce

WAIT_MS = 60_000


@dataclass
class Policy:
    """``desk.gui.stores.ports.Power`` of a machine on a laptop with half a charge, in memory."""

    source: Source = Source.MAINS
    cpus: float | None = None
    chosen: str = "auto"
    there: bool = True
    refusal: DeskError | None = None
    calls: list[tuple[str, str]] = field(default_factory=list)

    def look(self) -> MachinePower | None:
        if not self.there:
            return None
        counts = self.source if self.chosen == "auto" else Source(self.chosen)
        on_battery = counts is Source.BATTERY
        now = PowerInForce(
            cpus=self.cpus if on_battery else None,
            frozen=("worker",) if on_battery else (),
            spared=(),
            problem="",
        )
        return MachinePower("default", HostPower(self.source, 57.0), self.chosen, self.cpus, now)

    def set(self, *, battery_cpus: str, source: str) -> MachinePower:
        self.calls.append((battery_cpus, source))
        if self.refusal is not None:
            raise self.refusal
        self.cpus, self.chosen = (float(battery_cpus) if battery_cpus else None), source
        found = self.look()
        assert found is not None
        return found


@dataclass
class Shown:
    policy: Policy
    store: PowerStore
    card: PowerCard


@pytest.fixture
def shown(qtbot: QtBot) -> Iterator[Shown]:
    policy, tasks = Policy(), TaskRunner()
    store = PowerStore(policy, tasks)
    card = PowerCard(store)
    qtbot.addWidget(card)
    card.show()
    yield Shown(policy, store, card)
    assert tasks.close()


def look(qtbot: QtBot, shown: Shown) -> None:
    with qtbot.waitSignal(shown.store.changed, timeout=WAIT_MS):
        shown.store.refresh()


def apply(qtbot: QtBot, shown: Shown) -> None:
    with qtbot.waitSignal(shown.store.changed, timeout=WAIT_MS):
        qtbot.mouseClick(shown.card.apply_button, Qt.MouseButton.LeftButton)


def test_it_shows_the_power_and_sets_the_policy(qtbot: QtBot, shown: Shown) -> None:
    card = shown.card
    assert not card.limits.isEnabled()
    look(qtbot, shown)
    assert card.source.text() == "On mains · 57%"
    assert "all CPUs" in card.in_force.text()
    assert (card.limits.isChecked(), card.apply_button.isEnabled()) == (False, False)

    card.limits.setChecked(True)
    card.cpus.setValue(0.5)
    apply(qtbot, shown)
    assert shown.policy.calls == [("0.5", "auto")]
    assert "all CPUs" in card.in_force.text()
    assert not card.apply_button.isEnabled()

    shown.policy.source = Source.BATTERY
    look(qtbot, shown)
    assert card.source.text() == "On battery · 57%"
    assert "at most 0.5 CPUs; paused: worker" in card.in_force.text()

    card.choice.setCurrentIndex(card.choice.findData("mains"))
    card.limits.setChecked(False)
    apply(qtbot, shown)
    assert shown.policy.calls[-1] == ("", "mains")
    assert card.source.text() == "On mains · 57%"


def test_what_a_person_is_choosing_outlives_a_refresh(qtbot: QtBot, shown: Shown) -> None:
    look(qtbot, shown)
    shown.card.limits.setChecked(True)
    shown.card.cpus.setValue(2.25)
    look(qtbot, shown)
    assert (shown.card.limits.isChecked(), shown.card.cpus.value()) == (True, 2.25)
    # What another command set is shown.
    shown.policy.cpus = 1.0
    look(qtbot, shown)
    assert shown.card.cpus.value() == 1.0


def test_a_refusal_is_told_and_the_controls_stay(qtbot: QtBot, shown: Shown) -> None:
    look(qtbot, shown)
    shown.card.limits.setChecked(True)
    shown.policy.refusal = UsageError("that cannot be", hint="Do otherwise.")
    with qtbot.waitSignals([shown.store.failed, shown.store.changed], timeout=WAIT_MS):
        qtbot.mouseClick(shown.card.apply_button, Qt.MouseButton.LeftButton)
    assert shown.card.apply_button.isEnabled()


def test_a_machine_without_a_battery_offers_nothing(qtbot: QtBot, shown: Shown) -> None:
    shown.policy.there = False
    look(qtbot, shown)
    assert "does not follow" in shown.card.in_force.text()
    assert not shown.card.limits.isEnabled()
    assert not shown.card.choice.isEnabled()
    assert not shown.card.apply_button.isEnabled()


def test_the_line_says_who_runs_and_what_went_wrong() -> None:
    host = HostPower(Source.BATTERY)
    spared = PowerInForce(cpus=None, frozen=(), spared=("web",), problem="")
    text = in_force_text(MachinePower("m", host, "auto", None, spared))
    assert text.startswith("Containers have all CPUs; nothing is paused for it;")
    assert text.endswith("somebody started it: web.")
    broken = PowerInForce(cpus=None, frozen=(), spared=(), problem="it cannot be")
    assert in_force_text(MachinePower("m", host, "auto", 1.0, broken)) == "It cannot be."
    assert in_force_text(MachinePower("m", host, "auto", 1.0, None)) == "The machine does not run."
