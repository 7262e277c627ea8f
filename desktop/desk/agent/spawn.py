"""Starting, stopping and asking the agent of a machine, from any other process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from desk.agent.control import ask
from desk.agent.pidfile import PidFile
from desk.agent.spec import AgentSpec, PowerWishes
from desk.errors import Conflict, MachineError
from desk.paths import MachinePaths

_START_S = 60.0
_STOP_S = 5.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """One look at an agent. ``details`` is its own account (see ``Agent.status``), empty where
    it does not run or does not answer."""

    running: bool
    pid: int | None
    details: dict[str, Any]

    @property
    def connected(self) -> bool:
        """Whether the SSH connection stands now."""
        return self.details.get("state") == "connected"


def start(paths: MachinePaths, spec: AgentSpec, *, timeout_s: float = _START_S) -> AgentStatus:
    """Start the machine's agent as a background process and return when its sockets are there.

    The connection to the machine follows in the background; ``status`` shows it, and clients of
    the engine socket wait for it. An agent that runs already with the same instructions is left
    alone; one with others is replaced. Raises ``MachineError`` with the agent's own words.
    """
    running = status(paths, timeout_s=_STOP_S)  # a busy one is not to be replaced
    if running.running:
        if running.details.get("spec") == json.loads(spec.to_json()):
            return running
        stop(paths)
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {
            "creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        }
    process = subprocess.Popen(
        [sys.executable, "-m", "desk.agent", spec.machine, "--directory", str(paths.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=paths.directory,
        env=_environment(),
        **options,
    )
    answer = _first_answer(process, spec, paths, timeout_s)
    if "error" in answer:
        error = Conflict if answer.get("conflict") else MachineError
        raise error(answer["error"], hint=answer.get("hint", ""))
    return status(paths)


def _environment() -> dict[str, str]:
    """Return the environment with this very package on the child's path."""
    package_root = str(Path(__file__).resolve().parents[2])
    others = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": package_root + (os.pathsep + others if others else ""),
    }


def _first_answer(
    process: subprocess.Popen[bytes], spec: AgentSpec, paths: MachinePaths, timeout_s: float
) -> dict[str, Any]:
    """Give the process its instructions and return the one answer that it prints."""
    assert process.stdin is not None
    assert process.stdout is not None
    output: list[bytes] = []
    reader = threading.Thread(
        target=lambda pipe: output.append(pipe.read()), args=(process.stdout,), daemon=True
    )
    with process.stdout, contextlib.suppress(BrokenPipeError):
        reader.start()
        with process.stdin:
            process.stdin.write(spec.to_json().encode())
        reader.join(timeout_s)
        if reader.is_alive():
            _signal(PidFile(paths.agent_pid), signal.SIGTERM)
            process.kill()
            reader.join(_STOP_S)
    if sys.platform == "win32":
        process.returncode = 0  # the agent itself, which lives on without us
    else:
        process.wait()  # the agent's parent, which ends at once
    try:
        answer: dict[str, Any] = json.loads(b"".join(output))
    except ValueError as error:
        raise MachineError(
            f"the agent of machine {spec.machine} did not come up",
            hint=f"Its log may say why: {paths.agent_log}",
        ) from error
    return answer


def stop(paths: MachinePaths, *, timeout_s: float = _STOP_S) -> None:
    """End the machine's agent and wait until it is gone; no error where none runs.

    It is asked first, then told (SIGTERM), then killed; ``timeout_s`` bounds each step.
    """
    lock = PidFile(paths.agent_pid)
    if not lock.is_held():
        # Without a PID file no agent was ever here, and the engine's socket is the engine's own.
        if paths.agent_pid.exists():
            _remove_leftovers(paths)
        return
    try:
        ask(paths.agent_socket, "stop", timeout_s=timeout_s)
    except MachineError:
        _signal(lock, signal.SIGTERM)
    if _gone(lock, timeout_s):
        return
    _signal(lock, signal.SIGTERM)
    if _gone(lock, timeout_s):
        return
    _signal(lock, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    if not _gone(lock, timeout_s):
        raise MachineError(
            f"the agent of machine {paths.directory.name} (process {lock.holder()}) does not end",
            hint="End that process by hand, then try again.",
        )
    _remove_leftovers(paths)


def _signal(lock: PidFile, number: int) -> None:
    holder = lock.holder()
    if holder is not None:
        try:
            os.kill(holder, number)
        except ProcessLookupError:
            return


def _gone(lock: PidFile, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while lock.is_held():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _remove_leftovers(paths: MachinePaths) -> None:
    for path in (
        paths.agent_socket,
        paths.engine_socket,
        paths.folders_socket,
        paths.agent_pid,
    ):
        path.unlink(missing_ok=True)


def status(paths: MachinePaths, *, timeout_s: float = 2.0) -> AgentStatus:
    """Return what the machine's agent says of itself; starts nothing and never raises for an
    agent that does not run or does not answer."""
    lock = PidFile(paths.agent_pid)
    if not lock.is_held():
        return AgentStatus(running=False, pid=None, details={})
    try:
        details = ask(paths.agent_socket, "status", timeout_s=timeout_s)
    except MachineError:
        details = {}
    return AgentStatus(running=True, pid=lock.holder(), details=details)


def reconnect(paths: MachinePaths) -> None:
    """Have the agent drop its SSH connection and make a new one."""
    ask(paths.agent_socket, "reconnect")


def set_power(paths: MachinePaths, wishes: PowerWishes) -> None:
    """Have the agent follow other wishes from now on; ``MachineError`` where it does not answer, or
    is of an older Desk."""
    told = ask(paths.agent_socket, "status")
    if "power" not in told:
        name = paths.directory.name
        raise MachineError(
            f"the agent of machine {name} is of an older Desk, which follows no battery",
            hint=f"`desk machine restart {name}` starts a new one.",
        )
    ask(paths.agent_socket, "power", value=asdict(wishes))


def check(paths: MachinePaths, *, timeout_s: float = 20.0) -> Mapping[str, Any]:
    """Have the agent look at everything it does for the machine, its ports by a connection to each;
    return its ``checkups`` (see ``Checkup.describe``).

    Raises ``MachineError`` where no agent runs, or its look takes longer than ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    number = ask(paths.agent_socket, "check")
    while True:
        checkups: Mapping[str, Any] = ask(paths.agent_socket, "status")["checkups"]
        if checkups["last"] is not None and checkups["last"]["number"] >= number:
            return checkups
        if time.monotonic() > deadline:
            raise MachineError(
                f"the agent has looked at the machine for {timeout_s:g} s and is not done",
                hint=f"Its log tells more: {paths.agent_log}",
            )
        time.sleep(_POLL_S)
