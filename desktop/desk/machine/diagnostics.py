"""``desk doctor``: this computer and its machines, each check with a verdict and a remedy."""

from __future__ import annotations

import enum
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from desk.errors import DeskError, EngineError
from desk.machine import logs
from desk.machine.driver import Progress
from desk.machine.manager import Manager
from desk.machine.model import MachineStatus, State

_GIB = 1 << 30
_LITTLE_ROOM_BYTES = 2 * _GIB
_SLOW_S = 1.0
_MOST_OF_MEMORY = 0.8
_LINE_CHARACTERS = 120
_CLOCK_TOLERANCE_S = 2.0


class Verdict(enum.Enum):
    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at, how it is, and what to do (empty where all is well)."""

    subject: str
    verdict: Verdict
    text: str
    remedy: str = ""


def examine(
    manager: Manager, *, probe: bool = False, progress: Progress = lambda _sentence: None
) -> Iterator[Check]:
    """Yield the checks one by one, the computer's first, then each machine's.

    With ``probe`` every accelerator is tried anew, which takes some seconds each. A check that
    fails is a ``Check`` with ``FAILURE``; nothing is raised for it.
    """
    yield _python()
    yield _home(manager)
    yield _room(manager)
    machines = manager.list()
    # Whoever has only machines of other drivers needs neither QEMU nor a guest image.
    missing = Verdict.SKIPPED if _needs_no_image(manager, machines) else Verdict.FAILURE
    yield from _qemu(manager, probe=probe, progress=progress, missing=missing)
    yield _ssh_client()
    yield _memory(machines)
    for status in machines:
        yield from _machine(manager, status)
        yield from _logs(manager, status)


def _guarded(subject: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except DeskError as error:
        return Check(subject, Verdict.FAILURE, error.text, error.hint)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", Verdict.OK, f"Python {version} at {sys.executable}")


def _home(manager: Manager) -> Check:
    directory = manager.home.directory
    if not directory.exists():
        return Check("home", Verdict.OK, f"{directory} does not exist yet")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return Check(
            "home",
            Verdict.FAILURE,
            f"{directory} may not be written to",
            "Set DESK_HOME to a directory of your own, or mend its permissions.",
        )
    mode = directory.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        return Check(
            "home",
            Verdict.WARNING,
            f"{directory} with its keys is open to others (mode {mode:o})",
            f"Run `chmod 700 {directory}`.",
        )
    return Check("home", Verdict.OK, f"{directory} is private and writable")


def _room(manager: Manager) -> Check:
    place = manager.home.directory
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{free / _GIB:.1f} GiB are free on the disk of {place}"
    if free < _LITTLE_ROOM_BYTES:
        return Check(
            "disk",
            Verdict.WARNING,
            text,
            "Make room: a machine's disk grows as images and containers need it.",
        )
    return Check("disk", Verdict.OK, text)


def _needs_no_image(manager: Manager, machines: Sequence[MachineStatus]) -> bool:
    """Whether there are machines, and none of them boots a guest image."""
    return bool(machines) and not any(
        status.driver == "" or manager.inspect(status.name)["features"]["needs_guest_image"]
        for status in machines
    )


def _qemu(
    manager: Manager, *, probe: bool, progress: Progress, missing: Verdict
) -> Iterator[Check]:
    from desk.machine.accelerator import Accelerators, qemu_version
    from desk.machine.drivers.qemu import find_qemu
    from desk.machine.images import ImageStore, host_architecture
    from desk.machine.qemu_command import HostFacts, candidate_accelerators

    arch = host_architecture()
    try:
        binary = find_qemu(arch)
        version = qemu_version(binary)
    except DeskError as error:
        yield Check("qemu", missing, error.text, error.hint)
        return
    yield Check("qemu", Verdict.OK, f"QEMU {'.'.join(map(str, version))} at {binary}")
    yield _folders(version)
    host = HostFacts(sys.platform, arch, binary, version)
    store = ImageStore(manager.home)
    try:
        image = store.newest()
        store.check(image)
        if probe:
            progress("Reading the guest image")
            store.verify(image)
    except DeskError as error:
        yield Check("guest image", missing, error.text, error.hint)
        return
    checked = "every byte verified" if probe else "its files are whole in size"
    yield Check("guest image", Verdict.OK, f"{image.manifest.identity}: {checked}")
    trials = Accelerators(manager.home)
    verdicts = trials.probe_all(host, image, progress) if probe else trials.known(host, image)
    known = {verdict.accelerator: verdict for verdict in verdicts}
    for name in candidate_accelerators(host, arch):
        if name not in known:
            yield Check(
                f"accelerator {name}",
                Verdict.SKIPPED,
                "not tried with this QEMU, host kernel and image",
                "`desk doctor --probe` tries it.",
            )
        elif known[name].works:
            yield Check(f"accelerator {name}", Verdict.OK, known[name].reason)
        else:
            yield Check(
                f"accelerator {name}",
                Verdict.WARNING,
                known[name].reason,
                "Machines run without it, more slowly.",
            )


def _folders(qemu_version: tuple[int, int, int]) -> Check:
    """By which way machines of QEMU's get this computer's folders where nothing was set."""
    from desk.machine.drivers.virtiofs import cost

    loss = cost(qemu_version)
    way = f"SFTP, since {loss}" if loss else "virtiofs"
    return Check("folders", Verdict.OK, f"machines of QEMU's get folders by {way}")


def _ssh_client() -> Check:
    program = shutil.which("ssh")
    if program is None:
        return Check("ssh", Verdict.WARNING, "OpenSSH's client is not installed; Desk uses its own")
    return Check("ssh", Verdict.OK, f"OpenSSH's client at {program}")


def _memory(machines: Sequence[MachineStatus]) -> Check:
    """Whether the machines' ceilings fit into this computer's memory together."""
    import psutil

    total = psutil.virtual_memory().total
    ceilings = sum(
        status.memory_mib << 20 for status in machines if status.host_memory_bytes is not None
    )
    text = (
        f"{total / _GIB:.1f} GiB in this computer; running machines may take {ceilings / _GIB:.1f}"
    )
    if ceilings > total * _MOST_OF_MEMORY:
        return Check(
            "memory", Verdict.WARNING, text, "Stop a machine, or give the machines less memory."
        )
    return Check("memory", Verdict.OK, text)


def _logs(manager: Manager, status: MachineStatus) -> Iterator[Check]:
    """What is known of the lines in the machine's logs."""
    running = status.state is State.RUNNING and not status.error
    verdict = Verdict.WARNING if running or status.state is State.STOPPED else Verdict.FAILURE
    for file, match in logs.known(manager.home.machine(status.name), running=running):
        text = f"{match.text} ({file.name}: {_shortened(match.line)})"
        yield Check(f"machine {status.name}: log", verdict, text, match.problem.remedy)


def _shortened(line: str) -> str:
    return line if len(line) <= _LINE_CHARACTERS else f"{line[: _LINE_CHARACTERS - 1]}…"


def _ports(manager: Manager, name: str, subject: str) -> Check | None:
    """Ask the agent whether every published port is open here; ``None`` where there is none."""
    from desk.agent import spawn

    ports = spawn.status(manager.home.machine(name)).details.get("ports") or []
    subject = f"{subject}: ports"
    closed = [port for port in ports if port["state"] != "open"]
    if closed:
        return Check(subject, Verdict.FAILURE, closed[0]["error"], closed[0]["hint"])
    if not ports:
        return None
    many = "port is" if len(ports) == 1 else "ports are"
    return Check(subject, Verdict.OK, f"{len(ports)} published {many} open on this computer")


def _machine(manager: Manager, status: MachineStatus) -> Iterator[Check]:
    subject = f"machine {status.name}"
    if status.state is State.STOPPED:
        yield Check(subject, Verdict.OK, "stopped")
        return
    if status.state is not State.RUNNING or status.error:
        yield Check(
            subject,
            Verdict.FAILURE,
            f"{status.state.value.lower()}: {status.error or 'it does not run'}",
            f"`desk machine restart {status.name}` mends most faults.",
        )
        return
    yield Check(subject, Verdict.OK, f"running, engine {status.engine_version}")
    yield _guarded(f"{subject}: engine", lambda: _engine(manager, status.name, subject))
    ports = _ports(manager, status.name, subject)
    if ports is not None:
        yield ports
    try:
        registry = _registry(manager, status.name, subject)
    except DeskError as error:
        registry = Check(f"{subject}: registry", Verdict.FAILURE, error.text, error.hint)
    if registry is not None:
        yield registry


def _registry(manager: Manager, name: str, subject: str) -> Check | None:
    """Ask whether the machine's own registry answers, where it has one."""
    from desk.engine.client import EngineClient
    from desk.engine.transport import transport_for
    from desk.machine.private_registry import PrivateRegistry

    with EngineClient(transport_for(manager.url(name)), timeout_s=10) as client:
        found = PrivateRegistry(client, manager.home).status()
    if found is None:
        return None
    subject = f"{subject}: registry"
    if found.error:
        remedy = f"`desk -m {name} registry start` tries again; see `desk logs desk-registry`."
        return Check(subject, Verdict.FAILURE, found.error, remedy)
    text = f"it answers at {found.address}" if found.running else "stopped"
    return Check(subject, Verdict.OK, text)


def _engine(manager: Manager, name: str, subject: str) -> Check:
    """Ask the engine for its clock and how quickly it answers."""
    from datetime import datetime

    from desk.engine.client import EngineClient
    from desk.engine.transport import transport_for

    with EngineClient(transport_for(manager.url(name)), timeout_s=10) as client:
        client.system.ping()
        began = time.time()
        info = client.system.info()
        took_s = time.time() - began
        try:
            full = bool(client.system.disk().get("Full"))
        except EngineError:  # it is older, or another one
            full = False
    there = datetime.fromisoformat(str(info.get("SystemTime", "")).replace("Z", "+00:00"))
    behind_s = began + took_s / 2 - there.timestamp()
    # When in those seconds the machine looked at its clock is unknown.
    if abs(behind_s) > _CLOCK_TOLERANCE_S + took_s / 2:
        return Check(
            f"{subject}: clock",
            Verdict.FAILURE,
            f"the machine's clock is {abs(behind_s):.1f} s {'behind' if behind_s > 0 else 'ahead'}",
            f"`desk machine restart {name}` sets it.",
        )
    if full:
        return Check(
            f"{subject}: disk",
            Verdict.FAILURE,
            "the machine's data disk is full: nothing new is made until there is room",
            f"Remove images or containers (`desk system prune`), or enlarge the disk "
            f"(`desk machine disk --resize 100g {name}`).",
        )
    text = f"it answers in {took_s * 1000:.0f} ms, and its clock is right"
    if took_s > _SLOW_S:
        return Check(
            f"{subject}: engine",
            Verdict.WARNING,
            text,
            "Give the machine more CPUs, or stop containers.",
        )
    return Check(f"{subject}: engine", Verdict.OK, text)
