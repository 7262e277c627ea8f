"""Everything that the command line and the app do with machines."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from desk.errors import Conflict, DeskError, EngineError, MachineError, NotFound, UsageError
from desk.machine import console, process
from desk.machine.agents import AgentProcesses, Agents
from desk.machine.coming_up import Machine, Patience, Report, Stopwatch, boot, power, stage
from desk.machine.driver import Progress
from desk.machine.drivers.table import DriverContext, Drivers, DriverTable
from desk.machine.model import (
    MachineSpec,
    MachineStatus,
    State,
    check_name,
    check_transition,
)
from desk.machine.openssh import ssh_options
from desk.machine.power_options import check_power, power_wishes
from desk.machine.readiness import Requirement
from desk.machine.sharing import check_sharing, folder_sharing
from desk.machine.store import MachineRecord, MachineStore
from desk.paths import Home, MachinePaths
from desk.ssh.endpoint import Endpoint

DEFAULT_MACHINE = "default"

START_DEADLINE_S = 120.0
STOP_GRACE_S = 20.0
_LOCK_WAIT_S = 300.0  # as long as the creation by another command may take
_SOCKET_PATH_BYTES = {"linux": 107, "darwin": 103}
_LONGEST_SOCKET_NAME = "engine.sock"
_OPERATIONS = {"starting": State.STARTING, "stopping": State.STOPPING}


def _silent(_sentence: str) -> None:
    return None


class Manager:
    """The machines below one ``Home``. Calls block; they may come from any thread.

    Verbs that change a machine hold its lock, so that commands at the same time wait for each
    other. ``progress`` is called with a short sentence for each step that takes time.
    """

    def __init__(
        self, home: Home, drivers: Drivers | None = None, agents: Agents | None = None
    ) -> None:
        self.home = home
        self._drivers: Drivers = drivers or DriverTable()
        self._agents: Agents = agents or AgentProcesses()
        self._store = MachineStore(home)
        self.before_change: Callable[[Machine], object] | None = None
        """Called with a machine that is held, before a start takes up what its file says."""

    # --- looking ---------------------------------------------------------------------------

    def names(self) -> Sequence[str]:
        return self._store.names()

    def exists(self, name: str) -> bool:
        return self._store.file(name).exists()

    def driver_names(self) -> Sequence[str]:
        return self._drivers.names()

    def list(
        self, *, timeout_s: float = 10.0, environ: Mapping[str, str] = os.environ
    ) -> list[MachineStatus]:
        """Return all machines; each gets ``timeout_s`` to answer, all at the same time."""
        names = self.names()
        answers: dict[str, MachineStatus] = {}

        def ask(name: str) -> None:
            answers[name] = self.status(name, timeout_s=timeout_s, environ=environ)

        threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in names]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [answers.get(name) or self._late(name) for name in names]

    def _late(self, name: str) -> MachineStatus:
        return MachineStatus(name, "", State.TIMEOUT, error="it did not answer in time")

    def status(
        self, name: str, *, timeout_s: float = 10.0, environ: Mapping[str, str] = os.environ
    ) -> MachineStatus:
        """Return one machine as it is now; a damaged one has the state ``Error``.

        Raises ``NotFound``, and ``UsageError`` for what cannot name a machine.
        """
        from desk.machine import engine_settings

        check_name(name)
        asked_at = time.monotonic()
        try:
            machine = self.open(name)
            state = machine.driver.state()
        except NotFound:
            raise
        except DeskError as error:
            return MachineStatus(name, "", State.ERROR, error=error.text)
        version, trouble = "", ""
        busy = _OPERATIONS.get(self._store.busy_with(name))
        if state is State.RUNNING:
            version, trouble = self._engine(machine, timeout_s)
        if busy is not None and not version:
            state, trouble = busy, ""
        spec = machine.record.spec
        up = state in (State.RUNNING, State.PAUSED)
        return MachineStatus(
            name=name,
            driver=spec.driver,
            state=state,
            url=self.url(name) if up else "",
            active=self.url(name) == environ.get("DOCKER_HOST"),
            engine_version=version,
            error=trouble,
            host_memory_bytes=machine.driver.host_memory_bytes() if up else None,
            memory_mib=spec.memory_mib,
            cpus=spec.cpus,
            labels=tuple(engine_settings.items(spec.options, "engine_label")),
            response_s=time.monotonic() - asked_at,
        )

    def _engine(self, machine: Machine, timeout_s: float) -> tuple[str, str]:
        """Return the engine's version and what is wrong with it; one of them is empty."""
        from desk.machine.engine_probe import engine_version

        try:
            return engine_version(machine.paths.engine_socket, timeout_s=timeout_s), ""
        except EngineError as error:
            if machine.driver.features.has_ssh:
                try:
                    return "", self._agents.obstacle(machine.paths) or error.text
                except DeskError as reason:
                    return "", reason.text
            return "", error.text

    def active(self, environ: Mapping[str, str] = os.environ) -> str:
        """Return the name of the machine that ``DOCKER_HOST`` points to; empty for none."""
        wanted = environ.get("DOCKER_HOST", "")
        return next((name for name in self.names() if self.url(name) == wanted), "")

    def url(self, name: str) -> str:
        """Return the machine's ``DOCKER_HOST``; it never changes, running or not."""
        paths = self.home.machine(check_name(name))
        if sys.platform == "win32":
            return f"npipe:////./pipe/desk-{name}-engine"
        return f"unix://{paths.engine_socket}"

    def engine_socket(self, name: str) -> Path:
        return self.home.machine(check_name(name)).engine_socket

    def endpoint(self, name: str) -> Endpoint:
        """Return where the machine's sshd is; raises ``MachineError`` where it has none."""
        endpoint = self.open(name).driver.endpoint()
        if endpoint is None:
            raise MachineError(
                f"machine {name} has no SSH: it is this computer itself",
                hint="Run the command directly.",
            )
        return endpoint

    def ssh_arguments(self, name: str, command: Sequence[str] = ()) -> Sequence[str] | None:
        """Return the OpenSSH client's arguments for the machine; ``None`` where the client is
        not installed (``desk.ssh`` opens a terminal by itself then)."""
        import shutil

        endpoint = self.endpoint(name)
        program = shutil.which("ssh")
        if program is None:
            return None
        return [program, *ssh_options(endpoint), f"{endpoint.user}@{endpoint.host}", *command]

    def inspect(self, name: str) -> dict[str, Any]:
        """Return everything that is known about the machine, for ``desk machine inspect``."""
        machine = self.open(name)
        endpoint, features = machine.driver.endpoint(), machine.driver.features
        return {
            **asdict(machine.record.spec),
            "created_at": machine.record.created_at,
            "facts": dict(machine.record.facts),
            "state": machine.driver.state().value,
            "url": self.url(name),
            "features": {
                name: sorted(value) if isinstance(value, frozenset) else value
                for name, value in asdict(features).items()
            },
            "directory": str(machine.paths.directory),
            "ssh": None if endpoint is None else {k: str(v) for k, v in asdict(endpoint).items()},
        }

    # --- making and removing ---------------------------------------------------------------

    def create(
        self,
        spec: MachineSpec,
        progress: Progress = _silent,
        *,
        disk: Callable[[Path], None] | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Make a machine, stopped. Raises ``Conflict`` where the name is taken; whatever is
        raised, nothing of the machine is left.

        For a copy of another machine ``disk`` replaces the new, empty data disk, and ``facts`` of
        the other one are kept.
        """
        import shutil

        from desk.machine.settings_file import render

        check_name(spec.name)
        self._check_socket_length(spec.name)
        check_sharing(spec.options)
        check_power(spec.options)
        paths = self.home.machine(spec.name)
        with self._store.locked(spec.name, "creating", wait_s=_LOCK_WAIT_S):
            self.check_free(spec.name)
            file = self._store.file(spec.name)
            driver = self._drivers.make(spec.driver, DriverContext(self.home, spec.name, file))
            with ExitStack() as undo:
                _make_directory(paths.directory)
                undo.callback(shutil.rmtree, paths.directory)
                undo.callback(driver.remove)
                driver.create(spec, progress)
                file.update(facts or {})
                if disk is not None:
                    disk(paths.data_disk)
                created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                settings = render(spec, driver.features)
                file.write(MachineRecord(spec, created_at), settings=settings)
                undo.pop_all()

    def check_free(self, name: str) -> None:
        """Raise ``Conflict`` where a machine has this name, ``MachineError`` where it is too
        long for a machine's files."""
        self._check_socket_length(name)
        if self.exists(name):
            raise Conflict(
                f"machine {name} exists already",
                hint=f"Use it, choose another name, or remove it with `desk machine rm {name}`.",
            )

    def remove(self, name: str, progress: Progress = _silent, *, force: bool = False) -> None:
        """End the machine and delete it with its data; asks nothing.

        With ``force`` a machine that is damaged, or that its driver cannot remove, goes too.
        """
        import shutil

        paths = self.home.machine(check_name(name))
        if not self.exists(name):
            raise NotFound(f"machine {name} does not exist", hint="See `desk machine ls`.")
        with self._store.locked(name, "stopping", wait_s=_LOCK_WAIT_S):
            progress(f"Removing machine {name}")
            self._agents.stop(paths)
            try:
                self.open(name).driver.remove()
            except NotFound:
                raise
            except DeskError:
                if not force:
                    raise
                _end_remembered(paths)
            try:
                paths.config.unlink(missing_ok=True)
                shutil.rmtree(paths.directory)
            except OSError as error:
                raise MachineError(
                    f"cannot remove {error.filename}: {error.strerror}",
                    hint=f"Remove the directory {paths.directory} by hand.",
                ) from error

    @contextlib.contextmanager
    def ended(self, name: str, progress: Progress = _silent) -> Iterator[Machine]:
        """Hold a machine that is switched off, without agent, to take its files away."""
        with self.held(name, "stopping") as machine:
            progress(f"Removing machine {name}")
            self._stop(machine, progress, STOP_GRACE_S)
            yield machine

    # --- power -----------------------------------------------------------------------------

    def start(
        self,
        name: str,
        progress: Progress = _silent,
        *,
        deadline_s: float = START_DEADLINE_S,
        cancelled: threading.Event | None = None,
    ) -> Report:
        """Start the machine and return when its engine answers; quick where it does already."""
        machine = self.open(name)
        if machine.driver.state() is State.RUNNING and not self._obstacle(machine, 2.0):
            return Report()
        with self._store.locked(name, "starting", wait_s=_LOCK_WAIT_S):
            return self._start(self.open(name), progress, deadline_s, cancelled)

    def replace_agent(self, name: str) -> bool:
        """Start the agent of a running machine whose agent was killed; return whether it was so.

        The engine's socket is served again when this returns. A machine that another command is
        starting or stopping is left to it.
        """
        if not self._lacks_agent(self.open(name)) or self._store.busy_with(name):
            return False
        with self._store.locked(name, "starting", wait_s=_LOCK_WAIT_S):
            machine = self.open(name)
            endpoint = machine.driver.endpoint()
            if endpoint is None or not self._lacks_agent(machine):
                return False
            self._start_agent(machine, endpoint)
        return True

    def renew_agent(self, machine: Machine) -> None:
        """Start the agent of a machine that is held and runs anew, by its settings as they are."""
        machine = self.open(machine.name)
        endpoint = machine.driver.endpoint()
        if endpoint is not None:
            self._start_agent(machine, endpoint)

    def renew_power(self, machine: Machine) -> None:
        """Tell the agent of a machine that is held what it is to do on battery now."""
        if self._agents.running(machine.paths):
            wishes = power_wishes(self.open(machine.name).record.spec)
            self._agents.set_power(machine.paths, wishes)

    def _lacks_agent(self, machine: Machine) -> bool:
        return (
            machine.driver.features.has_ssh
            and not self._agents.running(machine.paths)
            and machine.driver.state() is State.RUNNING
        )

    def stop(
        self, name: str, progress: Progress = _silent, *, grace_s: float = STOP_GRACE_S
    ) -> Report:
        """Stop the machine in order, the hard way after ``grace_s`` seconds; idempotent.

        Its engine stops the containers first, each by its own signal, and keeps how they ended.
        """
        from desk.machine.restart import ContainersOver

        self.open(name)
        with self._store.locked(name, "stopping", wait_s=_LOCK_WAIT_S):
            machine = self.open(name)
            self._wake(machine, progress)
            over = ContainersOver(machine, progress)
            left_s = over.stop(grace_s, policy_only=True)
            stopped = self._stop(machine, progress, left_s)
        return Report((*over.stages, *stopped.stages))

    def restart(
        self,
        name: str,
        progress: Progress = _silent,
        *,
        grace_s: float = STOP_GRACE_S,
        deadline_s: float = START_DEADLINE_S,
        cancelled: threading.Event | None = None,
        policy_only: bool = False,
    ) -> Report:
        """Stop and start the machine as one step; the report has the stages of both.

        What ran comes back in its order, paused where it was paused, unless ``policy_only``: then
        restart policies decide.
        """
        from desk.machine.restart import ContainersOver

        self.open(name)
        with self._store.locked(name, "stopping", wait_s=_LOCK_WAIT_S):
            machine = self.open(name)
            self._wake(machine, progress)
            over = ContainersOver(machine, progress)
            left_s = over.stop(grace_s, policy_only=policy_only)
            stopped = self._stop(machine, progress, left_s)
            self._store.now(name, "starting")
            started = self._start(self.open(name), progress, deadline_s, cancelled)
            returned = over.wait(deadline_s)
        stages = (*over.stages[:1], *stopped.stages, *started.stages, *over.stages[1:])
        return Report(stages, started.boot, returned)

    def park(self, name: str, progress: Progress = _silent) -> Report:
        """Write the running machine's state to disk and end it: no memory is used until ``start``
        lets it go on. Raises ``UsageError`` where its driver cannot, ``Conflict`` where it is off;
        where it fails the machine runs on."""
        watch = Stopwatch()
        with self.held(name, "stopping") as machine:
            if not machine.driver.features.parks:
                raise UsageError(
                    f"machine {name} cannot be parked: its driver {machine.record.spec.driver}"
                    " keeps no state on disk",
                    hint=f"`desk machine stop {name}` stops it.",
                )
            check_transition(name, machine.driver.state(), State.STOPPING)
            progress(f"Parking machine {name}")
            with watch.stage("agent's end"):
                self._agents.stop(machine.paths)
            try:
                with watch.stage("state to disk"):
                    machine.driver.park()
            except DeskError:
                endpoint = machine.driver.endpoint()
                if endpoint is not None and machine.driver.state() is State.RUNNING:
                    self._start_agent(machine, endpoint)
                raise
        return Report(tuple(watch.stages))

    def _wake(self, machine: Machine, progress: Progress) -> None:
        """Let a parked machine go on before something is done that would lose its state."""
        if machine.driver.state() is State.SAVED:
            self._start(machine, progress, START_DEADLINE_S, None)

    def kill(self, name: str) -> None:
        """End the machine at once, as if its plug were pulled. It waits for no other command."""
        machine = self.open(name)
        machine.driver.kill()
        self._agents.stop(machine.paths)

    def _start(
        self,
        machine: Machine,
        progress: Progress,
        deadline_s: float,
        cancelled: threading.Event | None,
    ) -> Report:
        watch = Stopwatch()
        with ExitStack() as undo:
            before = machine.driver.state()
            was_running, was_parked = before is State.RUNNING, before is State.SAVED
            if not (was_running or was_parked):
                machine = self._taken_up(machine, progress)
                undo.callback(machine.driver.kill)
            with watch.stage("power on"):
                machine.driver.start(progress)
            patience = Patience(machine, deadline_s, cancelled, progress, watch)
            powered = power(machine)
            if machine.driver.features.has_console and not was_running:
                patience.wait([powered, boot(machine)])
            endpoint = machine.driver.endpoint() if machine.driver.features.has_ssh else None
            wanted = [powered]
            if endpoint is not None:
                with watch.stage("agent"):
                    if not was_running:
                        undo.callback(self._agents.stop, machine.paths)
                    self._start_agent(machine, endpoint)
                wanted.append(self._connection(machine))
            wanted.append(self._engine_answer(machine))
            patience.wait(wanted)
            undo.pop_all()
        stages = () if was_parked else tuple(console.stages(machine.paths.console_log))
        return Report(tuple(watch.stages), stages)

    def _taken_up(self, machine: Machine, progress: Progress) -> Machine:
        """Return the machine with what its ``machine.toml`` says now; write one where none is."""
        from desk.machine.settings_file import changes, parse, read_text, render

        features, before = machine.driver.features, machine.record.spec
        file, store = machine.paths.settings, self._store.file(machine.name)
        if not file.exists():
            store.write(machine.record, settings=render(before, features))
            return machine
        text = read_text(file)
        wanted = parse(text, file, before, features)
        if wanted == before:
            return machine
        progress(f"Taking up {file}: {', '.join(changes(before, wanted))}")
        if self.before_change is not None:
            self.before_change(machine)
        disk = machine.driver.data_disk()
        if disk is not None and wanted.disk_gib > before.disk_gib:
            disk.grow(wanted.disk_gib << 30)
        store.write(replace(machine.record, spec=wanted), settings=text)
        return self.open(machine.name)

    def _start_agent(self, machine: Machine, endpoint: Endpoint) -> None:
        self._agents.start(
            machine.paths,
            machine.name,
            endpoint,
            machine.driver.engine_access(),
            keeps_clock=machine.driver.features.own_guest,
            leads_back=machine.driver.features.led_back_by_agent,
            sharing=folder_sharing(machine.record.spec, self.home),
            power=power_wishes(machine.record.spec)
            if machine.driver.features.shares_power
            else None,
        )

    def _connection(self, machine: Machine) -> Requirement:
        return Requirement(
            "the SSH connection",
            lambda _left_s: self._agents.obstacle(machine.paths),
            f"`desk machine restart {machine.name}` tries again; the agent's log is "
            f"{machine.paths.agent_log}.",
        )

    def _engine_answer(self, machine: Machine) -> Requirement:
        # Each question costs the booting guest a process: none before its engine can answer.
        announced = stage(machine, {"engine"}) if machine.driver.features.has_console else None

        def answers(left_s: float) -> str:
            if announced is not None and not announced():
                return "its engine has not started"
            return self._obstacle(machine, min(left_s, 5.0))

        return Requirement(
            "the engine", answers, f"`desk machine restart {machine.name}` tries again."
        )

    def _obstacle(self, machine: Machine, timeout_s: float) -> str:
        from desk.machine.engine_probe import engine_obstacle

        return engine_obstacle(machine.paths.engine_socket, timeout_s=timeout_s)

    def _stop(self, machine: Machine, progress: Progress, grace_s: float) -> Report:
        watch = Stopwatch()
        with watch.stage("agent's end"):
            self._agents.stop(machine.paths)
        if machine.driver.state() is not State.STOPPED:
            progress(f"Stopping machine {machine.name}")
        with watch.stage("power off"):
            machine.driver.stop(grace_s=grace_s)
        return Report(tuple(watch.stages))

    # --- parts -----------------------------------------------------------------------------

    def open(self, name: str) -> Machine:
        """Return the machine as its files are now. Raises ``NotFound``, ``MachineError``."""
        file = self._store.file(check_name(name))
        record = file.read()
        driver = self._drivers.make(record.spec.driver, DriverContext(self.home, name, file))
        return Machine(record, driver, self.home.machine(name))

    @contextlib.contextmanager
    def held(self, name: str, operation: str) -> Iterator[Machine]:
        """Hold the machine's lock, so that no other command changes it meanwhile."""
        self.open(name)
        with self._store.locked(name, operation, wait_s=_LOCK_WAIT_S):
            yield self.open(name)

    @contextlib.contextmanager
    def reserved(self, name: str, operation: str) -> Iterator[None]:
        """Hold the lock of a name, whether there is a machine or not."""
        with self._store.locked(name, operation, wait_s=_LOCK_WAIT_S):
            yield

    def respecify(
        self, machine: Machine, spec: MachineSpec, *, settings: str | None = None
    ) -> None:
        """Write another specification of a machine that is held; its next start follows it.
        ``settings`` is its ``machine.toml`` where that is not to be changed, but replaced."""
        file = self._store.file(machine.name)
        file.write(replace(file.read(), spec=spec), settings=settings)

    def check_settings(self, machine: Machine) -> None:
        """Raise ``SettingsMistake`` where ``machine.toml`` could not follow a change."""
        from desk.machine.settings_file import parse, read_text

        file = machine.paths.settings
        if file.exists():
            parse(read_text(file), file, machine.record.spec, machine.driver.features)

    def update_facts(self, machine: Machine, facts: Mapping[str, str]) -> None:
        """Set facts of a machine that is held."""
        self._store.file(machine.name).update(facts)

    def _check_socket_length(self, name: str) -> None:
        limit = _SOCKET_PATH_BYTES.get(sys.platform)
        socket = self.home.machine(name).engine_socket.with_name(_LONGEST_SOCKET_NAME)
        length = len(os.fsencode(socket))
        if limit is not None and length > limit:
            raise MachineError(
                f"the socket's name {socket} has {length} bytes, the system allows {limit}",
                hint="Set DESK_HOME to a shorter path, or give the machine a shorter name.",
            )


def _make_directory(directory: Path) -> None:
    import shutil

    try:
        if directory.exists():  # debris: a machine exists only with its machine.json
            shutil.rmtree(directory)
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise MachineError(
            f"cannot make {directory}: {error.strerror}",
            hint="Make room on that disk, or set DESK_HOME to a directory that you may write to.",
        ) from error


def _end_remembered(paths: MachinePaths) -> None:
    """End the processes of a machine whose record cannot be read any more."""
    for file in (paths.qemu_pid, paths.engine_pid):
        running = process.recall(file)
        if running is not None:
            running.kill()
