"""``desk doctor --bundle``: one archive with what a bug report needs, and no secrets.

Keys, disks and the seed are never read. All texts pass through ``without_secrets``; of containers
only their states are told, since commands and environments hold secrets of all kinds.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import desk
from desk.errors import DeskError, MachineError, UsageError
from desk.machine import logs
from desk.machine.diagnostics import Check
from desk.machine.driver import Progress
from desk.machine.manager import Manager
from desk.machine.model import MachineStatus, State
from desk.machine.secrets import without_secrets

_LOG_BYTES = 1 << 20
_PATIENCE_S = 20.0
_INSIDE = {
    "kernel.log": "dmesg | tail -n 1000",
    "disks.txt": "df -h; df -i",
    "memory.txt": "cat /proc/meminfo /proc/pressure/memory",
    "processes.txt": "ps -e -o pid,ppid,stat,rss,comm",
    "network.txt": "ip address; ip route; cat /etc/resolv.conf",
    "engine.log": "tail -c 1000000 /var/lib/desk/engine.log /run/desk/engine.log",
}
"""What is asked inside a machine: commands for its shell. No command lines of processes."""


def default_name() -> str:
    """Return the archive's name where none was given: it holds the time, so that none is lost."""
    return time.strftime("desk-report-%Y%m%d-%H%M%S.zip")


def write_bundle(
    file: Path, manager: Manager, checks: Iterable[Check], progress: Progress
) -> list[str]:
    """Write the archive, and return the names of its members.

    A part that cannot be had is a member that says why. Raises ``UsageError`` where ``file``
    exists, ``MachineError`` where it cannot be written; nothing is left behind then.
    """
    if file.exists():
        raise UsageError(f"{file} exists already", hint="Name another file.")
    partial = file.with_name(f".{file.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            partial.chmod(0o600)
            for name, text in _members(manager, checks, progress):
                archive.writestr(name, without_secrets(text))
            names = archive.namelist()
        partial.replace(file)
    except OSError as error:
        raise MachineError(
            f"cannot write {file}: {error.strerror or error}",
            hint="Name a file in a directory that you may write to, on a disk with room.",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return names


def _members(
    manager: Manager, checks: Iterable[Check], progress: Progress
) -> Iterator[tuple[str, str]]:
    yield "versions.json", _json(_versions())
    lines = []
    for check in checks:
        remedy = f" -> {check.remedy}" if check.remedy else ""
        lines.append(f"{check.verdict.value:<8} {check.subject}: {check.text}{remedy}\n")
    yield "doctor.txt", "".join(lines)
    if manager.home.settings.is_file():
        yield "settings.json", _tail(manager.home.settings)
    for status in manager.list():
        progress(f"Collecting what machine {status.name} tells")
        yield from (
            (f"machines/{status.name}/{name}", text) for name, text in _machine(manager, status)
        )


def _versions() -> dict[str, str]:
    return {
        "desk": desk.__version__,
        "python": sys.version,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _machine(manager: Manager, status: MachineStatus) -> Iterator[tuple[str, str]]:
    paths = manager.home.machine(status.name)
    if paths.config.is_file():
        yield "machine.json", _tail(paths.config)
    yield "status.txt", f"{status.state.value} {status.error}\n"
    for name, log in logs.log_files(paths).items():
        yield f"{name}.log", _tail(log)
    if status.state is not State.RUNNING:
        return
    try:
        yield from _engine(manager, status.name)
    except DeskError as error:
        yield "engine.txt", f"the engine told nothing: {error.text}\n"
    if not manager.inspect(status.name)["features"]["has_ssh"]:
        return  # it is this computer itself
    try:
        yield from _inside(manager, status.name)
    except DeskError as error:
        yield "inside.txt", f"nothing was asked inside the machine: {error.text}\n"


def _engine(manager: Manager, name: str) -> Iterator[tuple[str, str]]:
    from desk.engine.client import EngineClient
    from desk.engine.transport import transport_for

    with EngineClient(transport_for(manager.url(name)), timeout_s=_PATIENCE_S) as client:
        yield "engine/version.json", _json(client.system.version())
        yield "engine/info.json", _json(client.system.info())
        kept = ("Id", "Image", "State", "Status", "Created")
        containers = client.containers.list(all_=True)
        yield (
            "engine/containers.json",
            _json([{key: container.get(key) for key in kept} for container in containers]),
        )


def _inside(manager: Manager, name: str) -> Iterator[tuple[str, str]]:
    from desk.ssh.session import Session

    with Session.connect(manager.endpoint(name), timeout_s=_PATIENCE_S) as session:
        for member, command in _INSIDE.items():
            done = session.run(f"sudo -n sh -c '{command}'", timeout_s=_PATIENCE_S)
            output = done.stdout + done.stderr
            yield f"inside/{member}", output[-_LOG_BYTES:].decode("utf-8", "replace")


def _tail(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _LOG_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}\n"


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
