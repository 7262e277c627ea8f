"""Does again what made a machine, but for its data: docker-machine's ``provision``."""

from __future__ import annotations

from desk.machine.driver import Progress
from desk.machine.manager import Manager
from desk.machine.model import State


def provision(manager: Manager, name: str, progress: Progress) -> bool:
    """Repair what belongs to a machine: keys that are missing or damaged, what it knows of hosts,
    certificates, the engine and its settings. Return whether it was restarted: one that runs is,
    and ``progress`` is told first.

    Raises what starts and stops raise, ``ImageError`` for a guest image that is damaged, and
    ``SettingsMistake`` for a settings file with a mistake.
    """
    with manager.held(name, "setting") as machine:
        manager.check_settings(machine)
        runs = machine.driver.state() is not State.STOPPED
        machine.driver.provision(progress)
    if runs:
        progress(f"Restarting machine {name}, which has it from its start")
        manager.restart(name, progress)
    return runs
