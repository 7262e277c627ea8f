"""Adapts the client and the manager that command line and app share to the app's stores."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from desk.compose import Desk
from desk.engine.client import EngineClient
from desk.engine.streams import OutputStream
from desk.errors import DeskError, EngineError, ImageError
from desk.gui.stores.ports import Stream
from desk.machine.model import MachineSpec, MachineStatus
from desk.machine.power import MachinePower

LOG_TAIL_LINES = 1000
CHUNK_BYTES = 1 << 20
IMAGE_ARCHIVE_MEMBERS = frozenset({"manifest.json", "index.json", "oci-layout"})

ClientProvider = Callable[[], EngineClient]
"""Returns the client of the machine in use, or raises ``DeskError``; called in any thread."""


class _LogBytes:
    """A container's log frames as plain bytes."""

    def __init__(self, output: OutputStream) -> None:
        self._output = output

    def __iter__(self) -> Iterator[bytes]:
        for frame in self._output:
            yield frame.data

    def close(self) -> None:
        self._output.close()


class EngineContainers:
    """``desk.gui.stores.ports.Containers`` over the engine's client."""

    def __init__(self, client: ClientProvider) -> None:
        self._client = client

    def list(self) -> list[dict[str, Any]]:
        return self._client().containers.list(all_=True)

    def start(self, container_id: str) -> None:
        self._client().containers.start(container_id)

    def stop(self, container_id: str) -> None:
        self._client().containers.stop(container_id)

    def remove(self, container_id: str, *, force: bool) -> None:
        self._client().containers.remove(container_id, force=force)

    def logs(self, container_id: str) -> Stream:
        return _LogBytes(
            self._client().containers.logs(container_id, follow=True, tail=LOG_TAIL_LINES)
        )

    def events(self) -> Stream:
        return self._client().system.events()


class EngineImages:
    """``desk.gui.stores.ports.Images`` over the engine's client."""

    def __init__(self, client: ClientProvider) -> None:
        self._client = client

    def list(self) -> list[dict[str, Any]]:
        return self._client().images.list()

    def remove(self, reference: str) -> None:
        self._client().images.remove(reference)

    def load(self, file: str) -> str:
        path = Path(file)
        if holds_images(path):
            said = [
                str(step["stream"]).strip()
                for step in self._client().images.load(_pieces(path))
                if step.get("stream")
            ]
            return said[-1] if said else f"Loaded {path.name}."
        name = path.name.partition(".")[0].lower()
        steps = list(
            self._client().images.import_(
                _pieces(path), repository=name, message=f"Imported from {path.name}"
            )
        )
        if not steps:
            raise EngineError(f"the engine said nothing about {path.name}")
        return f"Imported {path.name} as {name}:latest."


class DeskMachine:
    """``desk.gui.stores.ports.Machine`` over the machine manager."""

    def __init__(self, desk: Desk, name: str) -> None:
        self._desk = desk
        self._name = name

    def status(self) -> MachineStatus | None:
        if not self._desk.has_machine(self._name):
            return None
        return self._desk.manager.status(self._name)

    def start(self, progress: Callable[[str], None]) -> None:
        if not self._desk.has_machine(self._name):
            defaults = self._desk.settings.defaults
            spec = MachineSpec(
                name=self._name,
                driver=defaults.driver,
                memory_mib=defaults.memory_mib,
                cpus=defaults.cpus,
                disk_gib=defaults.disk_gib,
                image=defaults.image,
            )
            self._desk.manager.create(spec, progress)
        self._desk.manager.start(self._name, progress)

    def stop(self) -> None:
        self._desk.manager.stop(self._name)

    def restart(self, progress: Callable[[str], None]) -> None:
        self._desk.manager.restart(self._name, progress)


class DeskPower:
    """``desk.gui.stores.ports.Power`` over the machine's power policy."""

    def __init__(self, desk: Desk, name: str) -> None:
        self._desk = desk
        self._name = name

    def look(self) -> MachinePower | None:
        if not self._desk.has_machine(self._name):
            return None
        if not self._desk.manager.open(self._name).driver.features.shares_power:
            return None
        return self._desk.power.look(self._name)

    def set(self, *, battery_cpus: str, source: str) -> MachinePower:
        return self._desk.power.set(
            self._name, lambda _: None, battery_cpus=battery_cpus, source=source
        )


def holds_images(path: Path) -> bool:
    """Return whether a tar file holds images (``save`` made it) rather than a root file system.

    Raises ``ImageError`` for a file that is no tar archive.
    """
    try:
        with tarfile.open(path) as archive:
            for number, member in enumerate(archive):
                if member.name.removeprefix("./") in IMAGE_ARCHIVE_MEMBERS:
                    return True
                # A root file system is large; images name themselves at either end of the archive,
                # and directories at their top tell the two apart long before.
                if number > 50 and member.name.removeprefix("./").startswith(("usr/", "bin/")):
                    return False
    except (tarfile.TarError, EOFError) as error:
        raise ImageError(
            f"{path} is not a tar archive: {error}",
            hint="Choose a file made by `docker save`, or a root file system's tar.",
        ) from error
    except OSError as error:
        raise DeskError(f"cannot read {path}: {error.strerror or error}") from error
    return False


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece
