"""The power policy of machines: what is wished, what this computer runs on, what is in force."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from desk.agent.power import HostPower, Source, read_host_power
from desk.agent.spec import AUTO
from desk.engine.client import EngineClient
from desk.engine.transport import UnixTransport
from desk.errors import EngineError, UsageError
from desk.machine.coming_up import Machine
from desk.machine.driver import Progress
from desk.machine.manager import Manager
from desk.machine.model import State
from desk.machine.power_options import power_wishes
from desk.machine.settings_change import MachineSettings, Wishes

if TYPE_CHECKING:
    from collections.abc import Callable

LABEL = "desk.power=pause-on-battery"
"""Containers with this label are paused on battery."""

_ANSWER_S = 15.0
_SETTLE_S = 20.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class PowerInForce:
    """What a running machine's engine does now. ``cpus`` is the limit of all its containers
    together, ``None`` without one; ``frozen`` and ``spared`` are names of labelled containers:
    paused by the policy, and running on battery because somebody wanted it."""

    cpus: float | None
    frozen: tuple[str, ...]
    spared: tuple[str, ...]
    problem: str


@dataclass(frozen=True, slots=True)
class MachinePower:
    """A machine's power policy. ``source`` is what counts: what this computer tells (``host``), or
    what was ``chosen`` for the machine. ``now`` is ``None`` where the machine does not run."""

    name: str
    host: HostPower
    chosen: str  # ``auto``, or a source
    battery_cpus: float | None
    now: PowerInForce | None

    @property
    def source(self) -> Source:
        return self.host.source if self.chosen == AUTO else Source(self.chosen)


class PowerControl:
    """Looks at the power policy of machines and changes it. ``read`` looks at this computer."""

    def __init__(
        self,
        manager: Manager,
        settings: MachineSettings,
        read: Callable[[], HostPower] = read_host_power,
    ) -> None:
        self._manager = manager
        self._settings = settings
        self._read = read

    def look(self, name: str) -> MachinePower:
        """Return the policy and what is in force of it.

        Raises ``UsageError`` for a machine that is not on this computer, and ``EngineError`` where
        its engine does not answer.
        """
        machine = self._manager.open(name)
        if not machine.driver.features.shares_power:
            raise UsageError(
                f"machine {name} is a Linux of its own, whose power Desk does not follow",
                hint="`desk update --cpus` and `desk pause` work on single containers.",
            )
        wishes = power_wishes(machine.record.spec)
        runs = machine.driver.state() is State.RUNNING
        return MachinePower(
            name=name,
            host=self._read(),
            chosen=wishes.source,
            battery_cpus=wishes.nano_cpus / 1e9 or None,
            now=_in_force(machine) if runs else None,
        )

    def set(
        self,
        name: str,
        progress: Progress,
        *,
        battery_cpus: str | None = None,
        source: str | None = None,
    ) -> MachinePower:
        """Change the policy, at once, and return it. An empty text unsets, ``None`` leaves.

        Raises ``UsageError`` for impossible values, and what ``look`` and ``MachineSettings.set``
        raise.
        """
        options = {"battery_cpus": battery_cpus, "power_source": source}
        wishes = Wishes({key: value for key, value in options.items() if value is not None})
        self._settings.set(name, wishes, progress)
        machine = self._manager.open(name)
        if machine.driver.state() is State.RUNNING:
            _wait_for_agent(machine)
        return self.look(name)


def _wait_for_agent(machine: Machine) -> None:
    """Return when the agent has told the engine; a lost connection leaves it for later."""
    from desk.agent import spawn

    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        told = spawn.status(machine.paths).details.get("power") or {}
        if told.get("settled") or told.get("problem"):
            return
        time.sleep(_POLL_S)


def _in_force(machine: Machine) -> PowerInForce:
    socket = UnixTransport(machine.paths.engine_socket)
    try:
        with EngineClient(socket, timeout_s=_ANSWER_S) as client:
            told = client.system.power()
    except EngineError as error:
        if error.status != 404:
            raise
        problem = (
            f"its engine is an older one, without a power policy: `desk machine upgrade"
            f" {machine.name}` brings one"
        )
        return PowerInForce(cpus=None, frozen=(), spared=(), problem=problem)
    return PowerInForce(
        cpus=int(told["NanoCpus"]) / 1e9 or None,
        frozen=_names(told["Frozen"]),
        spared=_names(told["Spared"]),
        problem=str(told["Problem"]),
    )


def _names(found: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted(str(each["Name"]) for each in found))
