"""Driver ``local``: the engine on this Linux, without a virtual machine; needs root.

Options: ``bip`` and ``default_address_pool`` as ``deskd`` takes them, for several engines side by
side. ``stop`` ends the engine *and its containers*, as switching a machine off does; an engine
that merely crashes leaves them running, and the next start finds them again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from desk.agent.spec import EngineAccess
from desk.errors import DriverError, EngineError, MachineError
from desk.machine import process
from desk.machine.driver import Features, Progress
from desk.machine.drivers.options import check_known
from desk.machine.drivers.table import DriverContext
from desk.machine.model import MachineSpec, State
from desk.ssh.endpoint import Endpoint

if TYPE_CHECKING:
    from desk.engine.transport import UnixTransport

OPTIONS = frozenset({"bip", "default_address_pool"})
_PARTS = ("deskd", "dnslib", "h11", "msgspec", "pyroute2")
_ENGINE_GRACE_S = 15.0
_CLEAN_UP_S = 60.0
_SOCKET_PATH_BYTES = 107
_LONGEST_RUN_NAME = "processes/" + "0" * 24 + "/monitor.sock"


class LocalDriver:
    """One ``deskd`` process with its roots in the machine's directory."""

    features = Features(
        needs_guest_image=False,
        has_ssh=False,
        can_power=True,
        has_console=False,
        live_memory=False,
        sized=False,
        options=OPTIONS,
    )

    def __init__(self, context: DriverContext) -> None:
        self._name = context.name
        self._paths = context.paths
        self._record = context.record

    def create(self, spec: MachineSpec, progress: Progress) -> None:
        """Check that an engine can run here, and make its directories."""
        check_known(spec, OPTIONS)
        self._check_host()
        progress("Making the engine's directories")
        self._make_directories()

    def provision(self, progress: Progress) -> None:
        """Make the engine's directories where they are missing."""
        self._check_host()
        progress("Making the engine's directories anew")
        self._make_directories()

    def _make_directories(self) -> None:
        try:
            self._paths.engine_data.mkdir(mode=0o711, exist_ok=True)
            self._paths.engine_run.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise MachineError(
                f"cannot make {error.filename}: {error.strerror}",
                hint="Make room on that disk, or set DESK_HOME to a directory on another one.",
            ) from error

    def _check_host(self) -> None:
        if sys.platform != "linux":
            raise DriverError(
                "the driver local runs the engine on this computer, and that is no Linux",
                hint="Use the driver qemu.",
            )
        if os.geteuid() != 0:
            raise DriverError(
                "the driver local runs the engine on this computer, and that needs root",
                hint="Run the command with sudo, or use the driver qemu.",
            )
        missing = [part for part in _PARTS if find_spec(part) is None]
        if missing:
            raise DriverError(
                f"the engine's part {missing[0]} is not installed",
                hint="Install it: `pip install 'desk-toolkit[engine]'`.",
            )
        length = len(os.fsencode(self._paths.engine_run / _LONGEST_RUN_NAME))
        if length > _SOCKET_PATH_BYTES:
            raise MachineError(
                f"sockets below {self._paths.engine_run} have names of {length} bytes, "
                f"the system allows {_SOCKET_PATH_BYTES}",
                hint="Set DESK_HOME to a shorter path, or give the machine a shorter name.",
            )

    def start(self, progress: Progress) -> None:
        if process.recall(self._paths.engine_pid) is not None:
            return
        self._check_host()
        progress("Starting the engine")
        self._paths.engine_socket.unlink(missing_ok=True)
        started = process.spawn_detached(self._argv(), log=self._paths.engine_log)
        process.remember(started, self._paths.engine_pid)

    def _argv(self) -> list[str]:
        options = self._record.read().spec.options
        argv = [
            *(sys.executable, "-m", "deskd"),
            *("--data-root", str(self._paths.engine_data)),
            *("--exec-root", str(self._paths.engine_run)),
            *("--host", f"unix://{self._paths.engine_socket}"),
        ]
        for option in sorted(OPTIONS & set(options)):
            argv += [f"--{option.replace('_', '-')}", options[option]]
        return argv

    def stop(self, *, grace_s: float) -> None:
        """Stop the containers, each with ``grace_s`` seconds, then the engine."""
        engine = process.recall(self._paths.engine_pid)
        if engine is not None:
            # An engine that does not answer any more is ended all the same.
            from desk.machine.drivers.engine_end import stop_containers

            with contextlib.suppress(EngineError):
                stop_containers(self._transport, grace_s=grace_s)
            engine.end(grace_s=_ENGINE_GRACE_S)
        self._forget()

    def kill(self) -> None:
        """End the containers and the engine at once."""
        engine = process.recall(self._paths.engine_pid)
        if engine is not None:
            from desk.machine.drivers.engine_end import stop_containers

            with contextlib.suppress(EngineError):
                stop_containers(self._transport, grace_s=0)
            engine.kill()
        self._forget()

    def _forget(self) -> None:
        self._paths.engine_pid.unlink(missing_ok=True)
        self._paths.engine_socket.unlink(missing_ok=True)

    def freeze(self) -> None:
        return

    def thaw(self) -> None:
        return

    def park(self) -> None:
        return

    def check_sharing(self, spec: MachineSpec) -> None:
        return

    def remove(self) -> None:
        """Remove every container, so that no process, mount or interface stays, then the engine."""
        import shutil

        if self._has_remains():
            if process.recall(self._paths.engine_pid) is None:
                self.start(lambda _sentence: None)
            self._wait_for_engine()
            from desk.machine.drivers.engine_end import remove_everything

            remove_everything(self._transport)
        self.stop(grace_s=0)
        self._purge_networks()
        for directory in (self._paths.engine_data, self._paths.engine_run):
            if directory.exists():
                shutil.rmtree(directory)

    def _purge_networks(self) -> None:
        """Remove the interfaces of an engine that was killed; one that ended has done it."""
        import subprocess

        if not self._paths.engine_data.exists():
            return
        argv = [sys.executable, "-m", "deskd", "purge", "--data-root", str(self._paths.engine_data)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DriverError(
                f"the networks of machine {self._name} cannot be removed: {done.stderr.strip()}",
                hint="Remove its interfaces by hand: `ip -details link` shows them.",
            )

    def _has_remains(self) -> bool:
        if process.recall(self._paths.engine_pid) is not None:
            return True
        run: Path = self._paths.engine_run / "processes"
        return run.is_dir() and any(run.iterdir())

    def _wait_for_engine(self) -> None:
        from desk.machine.engine_probe import engine_obstacle

        deadline = time.monotonic() + _CLEAN_UP_S
        while obstacle := engine_obstacle(self._paths.engine_socket, timeout_s=2.0):
            if process.recall(self._paths.engine_pid) is None or time.monotonic() > deadline:
                raise DriverError(
                    f"the engine of machine {self._name} does not start to clean up: {obstacle}",
                    hint=f"See {self._paths.engine_log}.",
                )
            time.sleep(0.05)

    @property
    def _transport(self) -> UnixTransport:
        from desk.engine.transport import UnixTransport

        return UnixTransport(self._paths.engine_socket)

    def state(self) -> State:
        running = process.recall(self._paths.engine_pid)
        if running is None:
            return State.STOPPED
        return State.PAUSED if running.suspended else State.RUNNING

    def endpoint(self) -> Endpoint | None:
        return None

    def engine_access(self) -> EngineAccess:
        return EngineAccess()

    def host_memory_bytes(self) -> int | None:
        return None  # its containers are processes of this computer like all others

    def live_memory(self) -> None:
        return None

    def data_disk(self) -> None:
        return None

    def diagnose(self) -> str:
        words = process.last_lines(self._paths.engine_log)
        said = f"its log ends with: {words[0]}" if words else "it wrote no log"
        return f"{said} (see {self._paths.engine_log})"
