"""The one place that knows drivers by their names.

Each is imported when a machine needs it, so that listing one kind never loads the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from desk.errors import UsageError
from desk.machine.driver import Driver
from desk.machine.store import MachineFile
from desk.paths import Home, MachinePaths


@dataclass(frozen=True, slots=True)
class DriverContext:
    """What a driver is given: the machine's files, and its record with the driver's own facts."""

    home: Home
    name: str
    record: MachineFile

    @property
    def paths(self) -> MachinePaths:
        return self.home.machine(self.name)


DriverFactory = Callable[[DriverContext], Driver]


class Drivers(Protocol):
    """Where the manager gets drivers from."""

    def names(self) -> list[str]: ...
    def make(self, driver: str, context: DriverContext) -> Driver:
        """Return the driver; raises ``UsageError`` for a name that is none."""


_BUILT_IN = {
    "qemu": "desk.machine.drivers.qemu:QemuDriver",
    "vagrant": "desk.machine.drivers.vagrant:VagrantDriver",
    "ssh": "desk.machine.drivers.ssh_host:SshHostDriver",
    "local": "desk.machine.drivers.local:LocalDriver",
}


class DriverTable:
    """Drivers by name: the built-in ones, and those given as ``extra`` (tests)."""

    def __init__(self, extra: Mapping[str, DriverFactory] | None = None) -> None:
        self._extra = dict(extra or {})

    def names(self) -> list[str]:
        return sorted({*_BUILT_IN, *self._extra})

    def make(self, driver: str, context: DriverContext) -> Driver:
        if driver in self._extra:
            return self._extra[driver](context)
        if driver not in _BUILT_IN:
            raise UsageError(
                f"{driver!r} is no machine driver", hint=f"Use one of: {', '.join(self.names())}."
            )
        module, _, attribute = _BUILT_IN[driver].partition(":")
        factory: DriverFactory = getattr(import_module(module), attribute)
        return factory(context)
