"""The agent of one running machine: its parts, their life, its periodic duties."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import desk
from desk.agent.acceptor import Acceptor, Handler
from desk.agent.checkup import ASKED, Checkup
from desk.agent.clock import GuestClock
from desk.agent.control import ControlServer
from desk.agent.datagrams import Datagrams
from desk.agent.direct_folders import DirectFolders, folders_secret
from desk.agent.door import EngineDoor
from desk.agent.folder_devices import FolderDevices
from desk.agent.folders import SharedFolders
from desk.agent.gateway import EngineGateway
from desk.agent.guest_mounts import GuestMounts
from desk.agent.link import Link
from desk.agent.local_services import LocalServices
from desk.agent.pidfile import PidFile
from desk.agent.ports import PortForwards
from desk.agent.power import PowerWatch
from desk.agent.spec import AgentSpec, PowerWishes
from desk.agent.wake import SleepDetector
from desk.agent.watch import EngineWatch
from desk.errors import MachineError
from desk.paths import MachinePaths
from desk.ssh.session import Session

_log = logging.getLogger(__name__)

_BACKLOG = 128
_WAKE_INTERVAL_S = 2.0
_RETRY_PORTS_S = 5.0
_PRUNE_S = 30.0
_UNMOUNT_S = 20.0


@dataclass(slots=True)
class Duty:
    """Something the agent does every ``interval_s`` seconds; ``run`` must not block for long."""

    name: str
    interval_s: float
    run: Callable[[], None]
    due_at: float = 0.0


class Agent:
    """The background process of one machine. ``start``, then ``run`` in the main thread."""

    def __init__(self, paths: MachinePaths, spec: AgentSpec) -> None:
        self._paths = paths
        self._spec = spec
        self._stopping = threading.Event()
        self._started_at = time.time()
        self._lock = PidFile(paths.agent_pid)
        self._acceptor = Acceptor()
        self._link = Link(spec.endpoint, self._when_up)
        self._clock = GuestClock(lambda: self._link.session(5.0, urgent=False))
        self._door = EngineDoor(spec.engine)
        self._gateway = EngineGateway(spec.machine, self._link, self._door)
        self._datagrams = Datagrams(self._link, spec.engine.datagrams_command)
        self._ports = PortForwards(self._link, self._acceptor, self._datagrams)
        mounts = _guest_mounts(paths, spec)
        devices = FolderDevices(spec.engine.folder_tags, spec.engine.program, paths.virtiofs)
        self._folders = SharedFolders(spec.machine, self._link, spec.sharing, mounts, devices)
        services = LocalServices(mounts) if spec.leads_back else None
        self._power = PowerWatch(spec.power, self._tell_power) if spec.power is not None else None
        self._watch = EngineWatch(
            self._link,
            self._door,
            self._ports,
            self._folders,
            services,
            when_up=self._power.connected if self._power is not None else None,
        )
        self._checkup = Checkup(
            self._link,
            look_at_clock=self._clock.check if spec.keeps_clock else None,
            reach_engine=self._watch.reach,
            probe_ports=self._ports.probe,
            probe_folders=self._folders.probe,
        )
        self._control = ControlServer(
            paths.agent_socket,
            {
                "ping": lambda: "pong",
                "status": self.status,
                "reconnect": self._link.reconnect,
                "check": lambda: self._checkup.request(ASKED),
                "stop": self._stopping.set,
            },
            {"power": self._set_power},
        )
        self._sleep = SleepDetector(_WAKE_INTERVAL_S)
        self._duties = [
            Duty("wake", _WAKE_INTERVAL_S, self._notice_sleep),
            Duty("ports", _RETRY_PORTS_S, self._retry_ports),
            Duty("pool", _PRUNE_S, self._door.prune),
            Duty("folders", _UNMOUNT_S, self._unmount_unused),
        ]
        self._undo = contextlib.ExitStack()

    def start(self) -> None:
        """Take the machine's lock, open the sockets, begin to connect.

        Raises ``Conflict`` where another agent runs, ``MachineError`` where a socket cannot be
        had; nothing stays behind then.
        """
        with contextlib.ExitStack() as undo:
            self._lock.acquire()
            undo.callback(self._lock.release)
            self._acceptor.start()
            undo.callback(self._acceptor.close)
            if sys.platform != "win32":
                self._listen(undo, self._paths.engine_socket, self._gateway.serve)
                if self._spec.engine.folders_address:
                    direct = DirectFolders(self._folders.serve_direct)
                    self._listen(undo, self._paths.folders_socket, direct.handle)
            self._control.start()
            undo.callback(self._control.close)
            self._door.start()
            undo.callback(self._door.close)
            self._datagrams.start()
            undo.callback(self._datagrams.close)
            undo.callback(self._ports.close)
            self._watch.start()
            undo.callback(self._watch.close)
            self._checkup.start()
            undo.callback(self._checkup.close)
            if self._spec.keeps_clock:
                self._clock.start()
                undo.callback(self._clock.close)
            if self._power is not None:
                self._power.start()
                undo.callback(self._power.close)
            self._link.start()
            undo.callback(self._link.close)
            undo.callback(self._folders.close)  # while there is a connection
            self._undo = undo.pop_all()
        _log.info(
            "agent of machine %s started (process %d, Desk %s)",
            self._spec.machine,
            os.getpid(),
            desk.__version__,
        )

    def _listen(self, undo: contextlib.ExitStack, path: Path, handler: Handler) -> None:
        listener = _listen_unix(path)
        undo.callback(path.unlink, missing_ok=True)
        self._acceptor.add(listener, handler)

    def run(self) -> None:
        """Do the periodic duties until SIGTERM, SIGINT or a ``stop`` request; then close all."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        try:
            while not self._stopping.is_set():
                self._stopping.wait(max(0.0, self._do_duties() - time.monotonic()))
        finally:
            _log.info("agent of machine %s stops", self._spec.machine)
            self._undo.close()

    def _do_duties(self) -> float:
        """Run what is due; return when the next duty is (monotonic seconds)."""
        for duty in self._duties:
            now = time.monotonic()
            if now >= duty.due_at:
                duty.due_at = now + duty.interval_s
                duty.run()
        return min(duty.due_at for duty in self._duties)

    def status(self) -> dict[str, object]:
        """Return the agent's own account, as the control socket gives it.

        ``state`` is ``connected`` or ``connecting``; times are seconds since 1970; ``spec`` are
        the instructions it was started with. ``last_error_kind`` is the name of an error class:
        ``HostKeyMismatch`` and ``KeyRefused`` are those that waiting does not mend.
        """
        connected_at, error = self._link.connected_at, self._link.error
        return {
            "machine": self._spec.machine,
            "pid": os.getpid(),
            "desk_version": desk.__version__,
            "started_at": self._started_at,
            "state": "connected" if connected_at is not None else "connecting",
            "connected_since": connected_at,
            "reconnects": self._link.reconnects,
            "last_error": error.text if error is not None else "",
            "last_error_hint": error.hint if error is not None else "",
            "last_error_kind": type(error).__name__ if error is not None else "",
            "engine": self._watch.engine,
            "pool": asdict(self._door.state()),
            "connections": self._acceptor.connections,
            "ports": self._ports.describe(),
            "folders": self._folders.describe(),
            "checkups": self._checkup.describe(),
            "power": self._power.describe() if self._power is not None else None,
            "spec": json.loads(self._spec.to_json()),
        }

    # --- power -----------------------------------------------------------------------------------

    def _tell_power(self, report: Mapping[str, object]) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = self._watch.call("POST", "/desk/power", report)
        return answer

    def _set_power(self, wishes: Mapping[str, Any]) -> None:
        if self._power is None:
            raise MachineError(
                f"the agent of machine {self._spec.machine} does not follow this computer's power",
                hint=f"`desk machine restart {self._spec.machine}` starts one that may.",
            )
        try:
            wanted = PowerWishes(**wishes)
        except TypeError as error:
            raise MachineError(
                f"the agent does not know all of {', '.join(wishes)}",
                hint=f"`desk machine restart {self._spec.machine}` starts a newer one.",
            ) from error
        # The next start of an agent compares instructions, and finds this one's right.
        self._spec = replace(self._spec, power=wanted)
        self._power.wish(wanted)

    # --- duties ----------------------------------------------------------------------------------

    def _when_up(self, session: Session) -> None:
        self._door.use(session)
        if self._link.reconnects:
            self._checkup.connected(session)
        else:
            self._clock.check_now()

    def _notice_sleep(self) -> None:
        slept_s = self._sleep.slept_s()
        if slept_s:
            words = f"this computer slept for about {slept_s:.0f} s"
            _log.info("%s; checking the connection", words)
            self._link.check()
            self._checkup.request(words)

    def _retry_ports(self) -> None:
        if self._ports.has_failures:
            self._watch.look_again()

    def _unmount_unused(self) -> None:
        if self._folders.has_unused:
            self._watch.look_again()


def _guest_mounts(paths: MachinePaths, spec: AgentSpec) -> GuestMounts:
    """Return this agent's mounts, named so that two computers may share one machine."""
    who = f"{uuid.getnode():x} {paths.directory}".encode("utf-8", "surrogateescape")
    name, dial = hashlib.sha256(who).hexdigest()[:12], f"{spec.engine.program} dial-stdio"
    address = spec.engine.folders_address
    secret = folders_secret(spec.endpoint) if address else ""
    return GuestMounts(name, dial, spec.engine.by_sudo, address, secret)


def _listen_unix(path: Path) -> socket.socket:
    """Listen on a socket, in the place of what a dead agent left there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if len(os.fsencode(path)) > 100:
            raise MachineError(
                f"the path {path} is too long for a socket (the system allows about 100 bytes)",
                hint="Set DESK_HOME to a shorter directory.",
            ) from error
        raise MachineError(
            f"cannot listen on {path}: {error.strerror or error}",
            hint="Check the directory's permissions and free space.",
        ) from error
    return listener
