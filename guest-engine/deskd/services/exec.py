"""``docker exec``: further processes in a running container."""

from __future__ import annotations

import asyncio
import base64
import secrets
from contextlib import suppress
from typing import Any

from deskd.domain.container import ApiStruct
from deskd.domain.detach_keys import parse_detach_keys
from deskd.domain.process import Exit
from deskd.domain.state import Status
from deskd.errors import Conflict, InvalidArgument, NotFound, StartFailed
from deskd.record import Record, field
from deskd.runtime import spec
from deskd.services.containers.links import Links
from deskd.services.containers.outcomes import CANNOT_INVOKE, failed_start_code
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.ports import AttachStream, Process, Runtime

KEEP_FINISHED_S = 300.0


class ExecConfig(ApiStruct, frozen=True):
    """``ExecConfig``: body of ``POST /containers/{id}/exec``."""

    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    console_size: tuple[int, int] | None = None
    detach_keys: str = ""
    tty: bool = False
    env: list[str] | None = None
    cmd: list[str] | None = None
    privileged: bool = False
    user: str = ""
    working_dir: str = ""


class Exec(Record, frozen=False):
    """One exec: created, then started once, then ended."""

    id: str
    container: Container
    config: ExecConfig
    process: Process | None = None
    started: bool = False
    pid: int = 0
    exit: Exit | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        return self.started and self.exit is None

    @property
    def command_text(self) -> str:
        """The command as events name it: with a space after a program without arguments."""
        program, *arguments = self.config.cmd or [""]
        return f"{program} {' '.join(arguments)}"


class Execs:
    """The exec service. A finished exec can be inspected for five minutes."""

    def __init__(
        self, registry: ContainerRegistry, runtime: Runtime, *, cgroup_parent: str = ""
    ) -> None:
        self._registry = registry
        self._runtime = runtime
        self._cgroup_parent = cgroup_parent or spec.DEFAULT_CGROUP_PARENT
        self._execs: dict[str, Exec] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    def create(self, reference: str, config: ExecConfig) -> Exec:
        """Prepare an exec. Raises ``Conflict`` unless the container runs."""
        container = self._registry.get(reference)
        self._check_running(container, reference)
        if not config.cmd:
            raise InvalidArgument("No exec command specified")
        created = Exec(secrets.token_hex(32), container, config)
        self._execs[created.id] = created
        container.exec_ids.append(created.id)
        self._tell(created, f"exec_create: {created.command_text}")
        return created

    def get(self, exec_id: str) -> Exec:
        """Return an exec by ID or a unique beginning. Raises ``NotFound``."""
        found = self._execs.get(exec_id)
        if found is None and exec_id:
            matching = [e for key, e in self._execs.items() if key.startswith(exec_id)]
            found = matching[0] if len(matching) == 1 else None
        if found is None:
            raise NotFound(f"No such exec instance: {exec_id}")
        return found

    def check_startable(self, exec_id: str) -> Exec:
        """Return an exec that can be started. Raises ``Conflict``."""
        found = self.get(exec_id)
        if found.running:
            raise Conflict(f"Exec command {found.id} is already running")
        if found.started:
            raise Conflict(f"Exec command {found.id} has already run")
        self._check_running(found.container)
        return found

    async def start(
        self, exec_id: str, *, attach: bool, console_size: tuple[int, int] | None
    ) -> AttachStream | None:
        """Run the exec; with ``attach`` return its stdio, joined before the first byte.

        Raises ``Conflict``, and what the start meets; the exit code then says so too.
        """
        found = self.check_startable(exec_id)
        found.started = True
        # As Docker: told before it can fail; a program that never ran has no exec_die.
        self._tell(found, f"exec_start: {found.command_text}")
        config, record = found.config, found.container.record
        rows, columns = console_size or config.console_size or (0, 0)
        try:
            if config.working_dir and not config.working_dir.startswith("/"):
                raise StartFailed(
                    "OCI runtime exec failed: exec failed: Cwd must be an absolute path: "
                    f"{config.working_dir} is not"
                )
            plan = spec.build_exec_plan(
                spec.ExecInputs(
                    exec_id=found.id,
                    container_id=record.id,
                    container_pid=record.state.pid,
                    config=record.config,
                    link_environment=Links(self._registry).environment(record),
                    host_config=record.host_config,
                    command=config.cmd or [],
                    env=config.env or [],
                    user=config.user,
                    working_dir=config.working_dir,
                    tty=config.tty,
                    open_stdin=config.attach_stdin and attach,
                    privileged=config.privileged,
                    rows=rows,
                    columns=columns,
                    cgroup_parent=self._cgroup_parent,
                )
            )
            process, stream = await self._runtime.start(
                plan,
                stdin=config.attach_stdin and attach,
                stdout=config.attach_stdout and attach,
                stderr=config.attach_stderr and attach,
            )
            if not attach:
                await stream.close()
        except Exception as error:
            code = failed_start_code(error, otherwise=CANNOT_INVOKE)
            found.exit = Exit(code, 0, error=str(error))
            found.ended.set()
            self._unlist(found)
            self._forget_later(found)
            raise
        found.process, found.pid = process, process.pid
        task = asyncio.create_task(self._watch(found, process))
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)
        return stream if attach else None

    async def _watch(self, found: Exec, process: Process) -> None:
        ended = await process.wait()
        found.exit, found.process = ended, None
        found.ended.set()
        self._unlist(found)
        self._tell(found, "exec_die", {"exitCode": str(ended.code)})
        await self._runtime.forget(found.id)
        self._forget_later(found)

    def _forget_later(self, found: Exec) -> None:
        asyncio.get_running_loop().call_later(KEEP_FINISHED_S, self._execs.pop, found.id, None)

    def _unlist(self, found: Exec) -> None:
        """Take an exec that ended from its container's; it can still be inspected by itself."""
        with suppress(ValueError):
            found.container.exec_ids.remove(found.id)

    async def signal(self, exec_id: str, number: int) -> None:
        """Send a signal to the exec's process, where it runs."""
        found = self._execs.get(exec_id)
        if found is not None and found.process is not None:
            await found.process.signal(number)

    def drop(self, exec_id: str) -> None:
        """Forget an exec that no client knows of; it may still be ending. Idempotent."""
        found = self._execs.pop(exec_id, None)
        if found is not None:
            self._unlist(found)

    async def finished(self, exec_id: str) -> None:
        """Wait for the end of a started exec: clients ask for its exit code right after its
        output has ended."""
        await self.get(exec_id).ended.wait()

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        """Tell the terminal's size. Raises ``Conflict`` where it does not run."""
        found = self.get(exec_id)
        if found.process is None:
            raise Conflict(f"cannot resize: exec {found.id} is not running")
        await found.process.resize(rows, columns)

    def inspect(self, exec_id: str) -> dict[str, Any]:
        """Return ``ExecInspectResponse``."""
        found = self.get(exec_id)
        command = found.config.cmd or []
        user = found.config.user or found.container.record.config.user
        process_config: dict[str, Any] = {
            "tty": found.config.tty,
            "entrypoint": command[0],
            "arguments": command[1:],
            "privileged": found.config.privileged,
        }
        if user:
            process_config["user"] = user
        return {
            "ID": found.id,
            "Running": found.running,
            "ExitCode": found.exit.code if found.exit else None,
            "ProcessConfig": process_config,
            "OpenStdin": found.config.attach_stdin,
            "OpenStderr": found.config.attach_stderr,
            "OpenStdout": found.config.attach_stdout,
            "CanRemove": False,
            "ContainerID": found.container.id,
            "DetachKeys": _detach_bytes(found.config.detach_keys),
            "Pid": found.pid,
        }

    def detached(self, exec_id: str) -> None:
        """Tell that a client left by its detach keys."""
        self._tell(self.get(exec_id), "exec_detach")

    async def close(self) -> None:
        """Stop watching; the processes keep running."""
        tasks = list(self._watchers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check_running(self, container: Container, called: str = "") -> None:
        status = container.record.state.status
        if status is Status.PAUSED:
            raise Conflict(
                f"Container {called or container.id} is paused, unpause the container before exec"
            )
        if status is Status.RESTARTING:
            raise Conflict(
                f"Container {container.id} is restarting, wait until the container is running"
            )
        if status is not Status.RUNNING:
            raise Conflict(f"container {container.id} is not running")

    def _tell(self, found: Exec, action: str, attributes: dict[str, str] | None = None) -> None:
        self._registry.tell(found.container, action, {"execID": found.id} | dict(attributes or {}))


def _detach_bytes(keys: str) -> str:
    """Return the keys of an exec as Docker shows them: the bytes that a terminal sends, in Base64;
    empty where the usual ones hold."""
    return base64.b64encode(parse_detach_keys(keys)).decode() if keys else ""
