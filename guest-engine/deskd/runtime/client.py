"""The engine's side of the runtime: orders to the launcher, connections to monitors.

``LauncherRuntime`` implements the services' ``Runtime`` on asyncio. Nothing here forks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import deskd.errors
from deskd.domain.process import Exit, FoundMonitor
from deskd.errors import Conflict, DeskdError, StartFailed, SystemFailure, Unavailable
from deskd.kernel import apparmor, process
from deskd.kernel.capability_names import DEFAULT_CAPABILITIES
from deskd.layout import ExecRoot
from deskd.record import replace
from deskd.runtime import name_sockets, records
from deskd.runtime.launcher import CREATE, HEADER, JOB
from deskd.runtime.monitored_stream import MonitoredStream
from deskd.runtime.name_sockets import NameSockets
from deskd.runtime.plan import AtOnce, Plan, encode
from deskd.runtime.seccomp_cache import SeccompCache
from deskd.runtime.socket_names import short_name

_WARM_UP_AFTER_S = 1.0
"""The engine's own start comes first."""
_LOST_CODE = 137
_LOST = "the monitor ended without a record: it was killed, or the machine was restarted"


class _Link(asyncio.Protocol):
    """A control connection: one answer is awaited at a time, the exit comes when it comes."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Exit | None] = loop.create_future()
        self.closed = asyncio.Event()
        self._answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            event = message.pop("event")
            if event == "exit":
                if not self.ended.done():
                    self.ended.set_result(Exit(**message))
            else:
                self._answers.put_nowait({"event": event, **message})

    def connection_lost(self, exc: Exception | None) -> None:
        self._answers.put_nowait(None)
        if not self.ended.done():
            self.ended.set_result(None)
        self.closed.set()

    def send(self, **message: Any) -> None:
        assert self._transport is not None
        self._transport.write(json.dumps(message).encode() + b"\n")

    async def answer(self) -> dict[str, Any]:
        """Wait for the next answer. Raises ``SystemFailure`` where the monitor has gone."""
        message = await self._answers.get()
        if message is None:
            self._answers.put_nowait(None)
            raise SystemFailure("the process's monitor ended unexpectedly")
        return message

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class MonitoredProcess:
    """A container's first process or an exec; implements ``Process``."""

    def __init__(
        self,
        runtime: LauncherRuntime,
        key: str,
        link: _Link,
        pid: int,
        started_at_ns: int = 0,
        *,
        is_exec: bool = False,
    ) -> None:
        self._runtime = runtime
        self._key = key
        self._link = link
        self._pid = pid
        self._started_at_ns = started_at_ns
        self._discarded = False
        self.is_exec = is_exec

    @property
    def key(self) -> str:
        return self._key

    @property
    def pid(self) -> int:
        return self._pid

    async def release(self) -> int:
        """Execute the program; return the start time in nanoseconds since the epoch.

        Raises ``StartFailed`` where that fails; then nothing is left of the process.
        """
        self._link.send(op="release")
        answer = await self._link.answer()
        if answer["event"] != "started":
            await self._gone()
            raise _error_of(self._key, answer, _CREATE_FAILED)
        self._started_at_ns = answer["started_at_ns"]
        return self._started_at_ns

    async def attach(self, *, stdin: bool, stdout: bool, stderr: bool) -> MonitoredStream:
        """Connect to the stdio. Raises ``Conflict`` where the process has ended."""
        path = self._runtime.exec_root.monitor_socket(self._key)
        order = {"op": "attach", "stdin": stdin, "stdout": stdout, "stderr": stderr}
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        answer = b""
        try:
            with short_name(path) as name:
                await loop.sock_connect(connection, name)
            await loop.sock_sendall(connection, json.dumps(order).encode() + b"\n")
            while b"\n" not in answer and (data := await loop.sock_recv(connection, 4096)):
                answer += data
            if b"\n" not in answer:
                raise ConnectionResetError
        except (FileNotFoundError, ConnectionError) as error:
            connection.close()
            raise Conflict(f"{self._key[:12]} is not running: there is nothing to attach to") from (
                error
            )
        except BaseException:
            connection.close()
            raise
        return MonitoredStream(connection, answer.partition(b"\n")[2])

    async def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; a process without one ignores it."""
        self._link.send(op="resize", rows=rows, columns=columns)

    async def signal(self, number: int) -> None:
        """Send a signal to the process itself, not to its children."""
        self._link.send(op="signal", number=number)

    async def wait(self) -> Exit:
        """Wait for the end; at once where it has already come."""
        ended = await asyncio.shield(self._link.ended)
        if ended is not None:
            return ended
        recorded = records.read_exit(self._runtime.exec_root.exit_record(self._key))
        return recorded or Exit(_LOST_CODE, time.time_ns(), error=_LOST)

    async def discard(self) -> None:
        """Give up a process that was never released; idempotent."""
        if self._discarded or self._started_at_ns:
            return
        self._discarded = True
        self._link.send(op="discard")
        with contextlib.suppress(SystemFailure):
            await self._link.answer()
        await self._gone()

    async def monitor_gone(self) -> None:
        """Wait for the end of the monitor, which may still serve a slow client."""
        await self._link.closed.wait()

    def let_go(self) -> None:
        """Close the connection to the monitor, which stays."""
        self._link.close()

    async def _gone(self) -> None:
        self._discarded = True
        self._link.close()
        self._runtime.drop(self._key)


class LauncherRuntime:
    """Processes, born from the launcher. ``launcher`` is the engine's end of its socket pair; the
    caller keeps it open for as long as it wants new processes."""

    def __init__(
        self, launcher: socket.socket, exec_root: str, seccomp: SeccompCache | None = None
    ) -> None:
        self.exec_root = ExecRoot(exec_root)
        self._launcher = launcher
        self._launcher.setblocking(False)
        self._order_lock = asyncio.Lock()
        self._seccomp = seccomp or SeccompCache(self.exec_root.seccomp_cache)
        self._processes: dict[str, MonitoredProcess] = {}
        self._warming: asyncio.Task[None] | None = None

    async def create(self, plan: Plan) -> MonitoredProcess:
        """Fork a monitor and a held first process.

        Raises ``StartFailed`` where the program cannot be found, and the error of the step that
        failed otherwise; then nothing is left of the process.
        """
        plan = await self._with_filter(plan)
        ours, theirs = socket.socketpair()
        with theirs:
            link = await self._connect(ours)
            try:
                await self._order(CREATE, encode(plan), [theirs.fileno()])
                theirs.close()
                answer = await link.answer()
            except BaseException:
                link.close()  # the monitor gives up a held process whose engine has gone
                raise
        if answer["event"] != "prepared":
            link.close()
            raise _error_of(plan.key, answer, _CREATE_FAILED)
        is_exec = plan.target is not None
        found = MonitoredProcess(self, plan.key, link, answer["pid"], is_exec=is_exec)
        self._processes[plan.key] = found
        return found

    async def start(
        self, plan: Plan, *, stdin: bool = False, stdout: bool = False, stderr: bool = False
    ) -> tuple[MonitoredProcess, MonitoredStream]:
        """Fork a monitor and a process that is not held; return it with its stdio, joined before
        the first byte. Raises what ``create`` and ``release`` raise."""
        plan = await self._with_filter(plan)
        wanted = AtOnce(attached=True, stdin=stdin, stdout=stdout, stderr=stderr)
        plan = replace(plan, at_once=wanted)
        ours, theirs = socket.socketpair()
        our_stream, their_stream = socket.socketpair()
        with theirs, their_stream:
            link = await self._connect(ours)
            stream = MonitoredStream(our_stream)
            try:
                fds = [theirs.fileno(), their_stream.fileno()]
                await self._order(CREATE, encode(plan), fds)
                theirs.close()
                their_stream.close()
                answer = await link.answer()
                if answer["event"] != "started":
                    raise _error_of(plan.key, answer, _EXEC_FAILED)
            except BaseException:
                link.close()
                await stream.close()
                raise
        found = MonitoredProcess(
            self,
            plan.key,
            link,
            answer["pid"],
            answer["started_at_ns"],
            is_exec=plan.target is not None,
        )
        self._processes[plan.key] = found
        return found, stream

    async def _with_filter(self, plan: Plan) -> Plan:
        spec = replace(plan.process, apparmor=await self._loaded(plan.process.apparmor))
        plan = replace(plan, process=spec)
        if not spec.seccomp or spec.seccomp.startswith("/"):
            return plan
        path = self._seccomp.known(
            spec.seccomp, spec.filter_capabilities
        ) or await asyncio.to_thread(self._seccomp.path, spec.seccomp, spec.filter_capabilities)
        return replace(plan, process=replace(spec, seccomp=path))

    async def _loaded(self, profile: str) -> str:
        """Return what AppArmor can do of what was asked for; see to it that the default is there.
        Where the kernel has no AppArmor no profile is asked after, as with Docker."""
        if profile != apparmor.DEFAULT_PROFILE:
            return profile if apparmor.is_enabled() else ""
        if apparmor.default_profile() and not apparmor.is_loaded(profile):
            await self.run_job("load_apparmor_default", {}, [])
        return apparmor.default_profile()

    async def close(self) -> None:
        """Let go of the launcher and of every monitor; running processes stay, held ones are
        given up by their monitors."""
        if self._warming is not None:
            self._warming.cancel()
        for known in self._processes.values():
            known.let_go()
        self._processes.clear()
        self._launcher.close()
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def _warm_up(self) -> None:
        """Compile the default filter before the first container asks for it; it takes some 50 ms
        on hardware and ten times that under emulation."""
        await asyncio.sleep(_WARM_UP_AFTER_S)
        with contextlib.suppress(DeskdError, OSError):  # told to who starts a container
            await asyncio.to_thread(self._seccomp.path, "default", DEFAULT_CAPABILITIES)
        with contextlib.suppress(DeskdError):  # whoever starts a container is told
            await self._loaded(apparmor.DEFAULT_PROFILE)

    async def reconcile(self) -> Sequence[FoundMonitor]:
        """Find the monitors of an earlier engine; their processes are available by ``get``. Called
        once, before anything else is asked of the runtime."""
        self._warming = asyncio.create_task(self._warm_up())
        try:
            names = sorted(os.listdir(self.exec_root.processes))
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            state = records.read_state(os.path.join(self.exec_root.processes, name))
            if state is None:
                # Nothing was born yet when its monitor ended.
                shutil.rmtree(os.path.join(self.exec_root.processes, name), ignore_errors=True)
                continue
            monitor = await self._find(state)
            if monitor is not None:
                found.append(monitor)
        return found

    async def _find(self, state: records.MonitorState) -> FoundMonitor | None:
        link = await self._reconnect(state)
        if link is not None:
            try:
                status = await link.answer()
            except SystemFailure:
                link.close()
                link = None
            else:
                if status["event"] == "status" and status["started_at_ns"]:
                    started: int = status["started_at_ns"]
                    process_ = MonitoredProcess(self, state.key, link, state.pid, started)
                    self._processes[state.key] = process_
                    return FoundMonitor(state.key, state.pid, started, None)
                # Held for an engine that has died: nobody will release it.
                link.send(op="discard")
                with contextlib.suppress(SystemFailure):
                    await link.answer()
                link.close()
                return None
        ended = records.read_exit(self.exec_root.exit_record(state.key))
        if ended is None and not state.started_at_ns:
            await self.forget(state.key)
            return None
        ended = ended or Exit(_LOST_CODE, time.time_ns(), error=_LOST)
        return FoundMonitor(state.key, state.pid, state.started_at_ns, ended)

    async def _reconnect(self, state: records.MonitorState) -> _Link | None:
        if state.boot_id != process.boot_id():
            return None
        if process.start_ticks(state.monitor_pid) != state.start_ticks:
            return None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        path = self.exec_root.monitor_socket(state.key)
        try:
            with short_name(path) as name:
                await asyncio.get_running_loop().sock_connect(connection, name)
        except OSError:
            connection.close()
            return None
        link = await self._connect(connection)
        link.send(op="control")
        return link

    @staticmethod
    async def _connect(connection: socket.socket) -> _Link:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(_Link, sock=connection)
        return link

    def get(self, key: str) -> MonitoredProcess | None:
        """Return a process that is known to run, or to have run."""
        return self._processes.get(key)

    def drop(self, key: str) -> None:
        """Forget a process in memory only."""
        self._processes.pop(key, None)

    async def forget(self, key: str) -> None:
        """Remove what is kept of an ended process; idempotent."""
        ended = self._processes.pop(key, None)
        directory = self.exec_root.process(key)
        if ended is not None:
            if ended.is_exec:
                await ended.monitor_gone()  # it removes the directory, if nobody has killed it
            ended.let_go()
        try:
            # All there is in the common case: three calls instead of a walk.
            os.unlink(f"{directory}/{records.STATE}")
            os.unlink(self.exec_root.exit_record(key))
            os.rmdir(directory)
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)

    async def name_sockets(self, key: str, *, make_in: int = 0) -> NameSockets | None:
        """Return the sockets of a running container's name server, ``None`` where it has none.
        With ``make_in``, the PID of its first process, they are made where there are none.

        Raises ``Conflict`` where the container has ended.
        """
        path = self.exec_root.monitor_socket(key)
        try:
            found = await name_sockets.fetch(path)
            if found is not None or not make_in:
                return found
            with await name_sockets.connect(path) as monitor:
                await self.run_job("name_sockets", {"pid": make_in}, [monitor.fileno()])
            return await name_sockets.fetch(path)
        except (OSError, TimeoutError) as error:
            raise Conflict(f"{key[:12]} is not running: it has no name server") from error

    async def run_job(self, job: str, arguments: Mapping[str, Any], fds: Sequence[int]) -> Any:
        """Run a named job; see ``deskd.runtime.jobs``. Raises what the job raised."""
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            order = {"job": job, "arguments": dict(arguments)}
            try:
                await self._order(JOB, encode(order), [theirs.fileno(), *fds])
                theirs.close()
                data = await reader.read()
            except ConnectionResetError:
                data = b""
            finally:
                writer.close()
        if not data:
            raise SystemFailure(f"the job {job} ended without an answer")
        answer = json.loads(data)
        if "error" in answer:
            raise _class_of(answer["error"])(answer["text"])
        return answer["result"]

    async def _order(self, kind: bytes, payload: bytes, fds: Sequence[int]) -> None:
        """Send an order whole, whatever happens to the caller: half of one would be read as the
        beginning of the next. Copies of ``fds`` travel."""
        copies = [os.dup(fd) for fd in fds]
        await asyncio.shield(self._send(HEADER.pack(kind, len(payload)) + payload, copies))

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with self._order_lock:
                while True:
                    try:
                        sent = socket.send_fds(self._launcher, [data], list(fds))
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.001)
                if sent < len(data):
                    await loop.sock_sendall(self._launcher, memoryview(data)[sent:])
        except OSError as error:
            raise Unavailable(
                "the engine's launcher has ended; restart the engine, containers go on"
            ) from error
        finally:
            for fd in fds:
                os.close(fd)


def _class_of(name: str) -> type[DeskdError]:
    found = getattr(deskd.errors, name, SystemFailure)
    if isinstance(found, type) and issubclass(found, DeskdError) and found is not StartFailed:
        return found
    return SystemFailure


# Programs that drive Docker look for these words.
_CREATE_FAILED = "OCI runtime create failed: unable to start container process"
_EXEC_FAILED = "OCI runtime exec failed: exec failed: unable to start container process"


def _error_of(key: str, answer: Mapping[str, Any], cannot: str) -> DeskdError:
    """Turn a monitor's ``failed`` into the error to raise; ``cannot`` begins the text of a
    program's own fault."""
    if answer["event"] != "failed":
        return SystemFailure(f"the monitor of {key[:12]} answered {answer['event']!r}")
    text = answer["text"]
    if answer["kind"] == "StartFailed":
        return StartFailed(f"{cannot}: {text}", answer["exit_code"])
    if answer["step"] == "user":
        return _class_of(answer["kind"])(text)
    if answer["step"]:
        text = f"{answer['step']}: {text}"
    return _class_of(answer["kind"])(f"failed to start {key[:12]}: {text}")
