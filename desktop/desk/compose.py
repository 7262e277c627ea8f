"""The composition root of the command line and the app: home, settings, machines, engine clients.

Nothing is imported before it is needed: a command that only talks to a running engine loads
neither drivers nor SSH.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from desk import settings as settings_module
from desk.errors import EngineUnreachable, MachineNotRunning, NotFound
from desk.paths import Home, default_home
from desk.settings import DEFAULT_MACHINE, Settings

if TYPE_CHECKING:
    from desk.engine.client import EngineClient
    from desk.engine.transport import Connection, Transport
    from desk.machine.archives import MachineArchives
    from desk.machine.bin import MachineBin
    from desk.machine.checkpoints import Checkpoints
    from desk.machine.coming_up import Machine
    from desk.machine.copies import MachineCopies
    from desk.machine.disks import MachineDisks
    from desk.machine.manager import Manager
    from desk.machine.memory import MemoryDial
    from desk.machine.power import PowerControl
    from desk.machine.settings_change import MachineSettings
    from desk.machine.upgrades import Upgrades

Progress = Callable[[str], None]


class MachineTransport:
    """The engine socket of a machine. Where nothing answers there, ``revive`` is called once: it
    makes the machine run, or raises an error that says what to do."""

    def __init__(self, socket: Transport, revive: Callable[[], None]) -> None:
        self._socket = socket
        self._revive = revive

    @property
    def url(self) -> str:
        return self._socket.url

    def connect(self, timeout_s: float) -> Connection:
        try:
            return self._socket.connect(timeout_s)
        except EngineUnreachable:
            self._revive()
        return self._socket.connect(timeout_s)


class Desk:
    """Everything that a face of Desk uses; one per process."""

    def __init__(self, home: Home | None = None) -> None:
        self.home = home or Home(default_home())

    @cached_property
    def settings(self) -> Settings:
        """The settings as they were when first asked for; ``SettingsError`` for a bad file."""
        return settings_module.load(self.home.settings)

    def save_settings(self, settings: Settings) -> None:
        settings_module.save(self.home.settings, settings)
        self.__dict__["settings"] = settings

    @cached_property
    def manager(self) -> Manager:
        """The machines."""
        from desk.machine.manager import Manager

        def keep(machine: Machine) -> None:  # what that needs is loaded by the few that need it
            self.checkpoints.keep_settings(machine)

        manager = Manager(self.home)
        manager.before_change = keep
        return manager

    @cached_property
    def memory(self) -> MemoryDial:
        """The memory of machines."""
        from desk.machine.memory import MemoryDial

        return MemoryDial(self.manager)

    @cached_property
    def disks(self) -> MachineDisks:
        """The data disks of machines."""
        from desk.machine.disks import MachineDisks

        return MachineDisks(self.manager)

    @cached_property
    def machine_settings(self) -> MachineSettings:
        """The settings files of machines."""
        from desk.machine.settings_change import MachineSettings

        return MachineSettings(self.manager, self.memory, self.disks)

    @cached_property
    def power(self) -> PowerControl:
        """What machines do while this computer is on its battery."""
        from desk.machine.power import PowerControl

        return PowerControl(self.manager, self.machine_settings)

    @cached_property
    def copies(self) -> MachineCopies:
        """Machines under other names, and their snapshots."""
        from desk.machine.copies import MachineCopies

        return MachineCopies(self.manager)

    @cached_property
    def machine_bin(self) -> MachineBin:
        """Machines that were removed."""
        from desk.machine.bin import MachineBin

        return MachineBin(self.manager)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Machines as they were before changes, upgrades and resets."""
        from desk.machine.checkpoints import Checkpoints

        return Checkpoints(self.manager)

    @cached_property
    def archives(self) -> MachineArchives:
        """Machines as files."""
        from desk.machine.archives import MachineArchives

        return MachineArchives(self.manager, self.copies)

    @cached_property
    def upgrades(self) -> Upgrades:
        """The guest images of machines."""
        from desk.machine.upgrades import Upgrades

        return Upgrades(self.manager)

    def has_machine(self, name: str) -> bool:
        return self.home.machine(name).config.is_file()

    def machine_url(self, name: str) -> str:
        """Return the machine's ``DOCKER_HOST`` as its manager does, without loading it."""
        if sys.platform == "win32":
            return self.manager.url(name)
        return f"unix://{self.home.machine(name).engine_socket}"

    def require_machine(self, name: str) -> None:
        """Raise ``NotFound`` with what to do where there is no machine of that name."""
        from desk.machine.model import check_name

        if not self.has_machine(check_name(name)):
            raise _no_machine(name)

    def client_for_url(self, url: str) -> EngineClient:
        """Return a client of the engine at an address in ``DOCKER_HOST``'s form."""
        from desk.engine.client import EngineClient
        from desk.engine.transport import transport_for

        return EngineClient(
            transport_for(url), unreachable_hint="Check the address and whether the engine runs."
        )

    def client(self, machine: str, *, start: bool = False, progress: Progress) -> EngineClient:
        """Return a client of a machine's engine. At its first call a machine that is stopped is
        started when ``start``, and named in a ``MachineNotRunning`` otherwise."""
        from desk.engine.client import EngineClient
        from desk.engine.transport import transport_for

        socket = transport_for(self.machine_url(machine))

        def revive() -> None:
            self.ensure_running(machine, start=start, progress=progress)

        return EngineClient(
            MachineTransport(socket, revive),
            unreachable_hint=f"See `desk machine status {machine}`;"
            f" `desk machine restart {machine}` mends most faults.",
            revive=revive,
        )

    def ensure_running(self, machine: str, *, start: bool, progress: Progress) -> None:
        """Start a machine whose engine does not answer, or raise what tells the remedy. A killed
        agent is replaced in either case: the machine runs, so nothing starts unasked."""
        from desk.machine.model import State

        if not self.has_machine(machine):
            raise _no_machine(machine)
        if start:
            self.manager.start(machine, progress)
            return
        status = self.manager.status(machine)
        if status.engine_version:
            return  # it came up meanwhile
        if status.state is State.RUNNING and self.manager.replace_agent(machine):
            return
        state = status.state.value.lower()
        why = f": {status.error}" if status.error else ""
        raise MachineNotRunning(
            f"machine {machine} is {state}{why}",
            hint=f"`desk machine start {machine}` starts it."
            if not status.error
            else f"`desk machine start {machine}` mends most faults; `desk doctor` looks closer.",
        )


def _no_machine(machine: str) -> NotFound:
    if machine == DEFAULT_MACHINE:
        return NotFound("there is no machine yet", hint="`desk up` makes and starts one.")
    return NotFound(
        f"machine {machine} does not exist",
        hint=f"`desk up --name {machine}` makes it; `desk machine ls` lists all.",
    )
