"""What the app's stores need from the rest of Desk; given by ``desk.gui.app`` from ``compose``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from desk.machine.model import MachineStatus
from desk.machine.power import MachinePower


class Stream(Protocol):
    """An endless answer of the engine. ``close`` may be called from another thread and ends the
    iteration there."""

    def __iter__(self) -> Iterator[Any]: ...
    def close(self) -> None: ...


class Containers(Protocol):
    """Containers of the machine in use. Calls block; they raise ``DeskError``."""

    def list(self) -> list[dict[str, Any]]: ...
    def start(self, container_id: str) -> None: ...
    def stop(self, container_id: str) -> None: ...
    def remove(self, container_id: str, *, force: bool) -> None: ...
    def logs(self, container_id: str) -> Stream:
        """Follow a container's output from its last 1,000 lines on; yields bytes."""

    def events(self) -> Stream:
        """Yield the engine's events as they happen, as dictionaries."""


class Images(Protocol):
    """Images of the machine in use. Calls block; they raise ``DeskError``."""

    def list(self) -> list[dict[str, Any]]: ...
    def remove(self, reference: str) -> None: ...
    def load(self, file: str) -> str:
        """Load an image archive, or import a root file system; return what to tell the person."""


class Machine(Protocol):
    """The machine in use. Calls block; they raise ``DeskError``."""

    def status(self) -> MachineStatus | None:
        """Return its state, ``None`` where no machine exists yet."""

    def start(self, progress: Callable[[str], None]) -> None: ...
    def stop(self) -> None: ...
    def restart(self, progress: Callable[[str], None]) -> None: ...


class Power(Protocol):
    """The power policy of the machine in use. Calls block; they raise ``DeskError``."""

    def look(self) -> MachinePower | None:
        """Return the policy, ``None`` where the machine follows no battery or is not there."""

    def set(self, *, battery_cpus: str, source: str) -> MachinePower: ...
