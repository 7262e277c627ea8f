"""The process that stays beside one container or exec, and outlives the engine.

One thread, one epoll loop. It speaks to the engine in JSON lines over *control* connections (the
first comes with the order to begin; later ones over ``monitor.sock``)::

    engine -> monitor   {"op": "release"} {"op": "discard"} {"op": "resize", "rows", "columns"}
                        {"op": "signal", "number"}
    monitor -> engine   {"event": "prepared", "pid"} {"event": "started", "started_at_ns"}
                        {"event": "failed", …StepFailed} {"event": "exit", …Exit}

A connection to ``monitor.sock`` begins with one line: ``{"op": "control"}``, answered by
``{"event": "status", …}``; or ``{"op": "attach", "stdin", "stdout", "stderr"}``, answered by
``{"event": "attached"}``, after which the connection is the stream itself (its half-close ends
the program's input where ``stdin_once`` says so). ``{"op": "names"}`` is answered with the sockets
of the container's name server, which this process keeps so that questions wait in them while
there is no engine; ``{"op": "keep-names"}`` brings such sockets. Both end with the answer.

Order at the end: output drained, log closed, cgroup removed, ``monitor.sock`` gone,
``exit.json`` written; only then do clients see the exit and the end of their streams. An exec is
known to nobody but the engine that ordered it: where that is told of the end nothing is recorded,
and the monitor removes its directory by itself afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Any

from deskd.domain.process import Exit
from deskd.kernel import process
from deskd.kernel.cgroup import Cgroup
from deskd.kernel.cgroup.memory import MemoryReading
from deskd.layout import ExecRoot
from deskd.record import as_dict
from deskd.runtime import terminal
from deskd.runtime.attach import HEADER_BYTES, STDERR, STDOUT, AttachClient, write_header
from deskd.runtime.birth import Birth, Born, failure_of
from deskd.runtime.control import Control
from deskd.runtime.handshake import Channel, Disconnected, Message, StepFailed
from deskd.runtime.json_log import JsonLog, open_log
from deskd.runtime.monitor_directory import MonitorDirectory
from deskd.runtime.plan import Plan

if TYPE_CHECKING:
    from deskd.runtime.buffered_log import BufferedLog

_PIPE_BYTES = 65536
"""What a pipe holds as it is made (pipe(7))."""
_READ_BYTES = 4 * _PIPE_BYTES
"""What one turn takes at most; a pipe that was not enlarged gives no more than it holds."""
_FIRST_READ_BYTES = 4096
"""Where that grows from: many programs write a line or nothing, and each page costs a fault."""
_GROWTH = 16
_STDIN_LIMIT_BYTES = 262144
_LINGER_S = 2.0
"""How long output that others still hold open is waited for after the process's end."""
_FLUSH_S = 10.0
"""How long a slow client may take to fetch what is left after the end."""
_LINE_LIMIT_BYTES = 65536


class Monitor:
    """The monitor of one plan."""

    def __init__(self, plan: Plan, cgroup: Cgroup, exec_root: ExecRoot) -> None:
        self._key = plan.key
        self._plan: Plan = plan
        self._streams = plan.streams
        self._creates_cgroup = plan.cgroup.create
        self._is_exec = plan.target is not None
        self._cgroup = cgroup
        self._directory = MonitorDirectory(exec_root, plan.key)
        self._epoll = select.epoll()
        self._controls: dict[int, Control] = {}
        self._newcomers: dict[int, Control] = {}
        self._clients: dict[int, AttachClient] = {}
        self._outputs: dict[int, int] = {}  # descriptor -> stream number
        self._paused = False
        self._buffer = memoryview(b"")  # made for the first output: most monitors see none
        self._stdin = bytearray()
        self._stdin_closing = False
        self._log: JsonLog | BufferedLog | None = None
        self._started_at_ns = 0
        self._ended: Exit | None = None
        self._died = False

    def close(self) -> None:
        """Give up a monitor that was never run."""
        self._epoll.close()

    # --- life ---

    def run(self, first: socket.socket, client: socket.socket | None = None) -> None:
        """Do the whole job; ``first`` is the control connection that came with the order,
        ``client`` the first attached client of a plan with ``at_once``."""
        control = Control(first)
        birth = Birth(self._plan, self._cgroup, self._directory.path)
        try:
            if not self._is_exec:
                self._directory.prepare()  # where its root will be mounted
            if self._plan.log is not None:
                self._log = open_log(self._plan.log)
            self._born: Born = birth.run(self._meanwhile)
            if self._plan.at_once is not None:
                _await_execution(self._born.channel)
        except Exception as error:  # noqa: BLE001 - whatever it was, the engine is told
            birth.undo()
            self._give_up()
            control.send(event="failed", **failure_of(error).to_json())
            return
        self._birth = birth
        self._add_control(control)
        if self._plan.at_once is not None:
            if not control.send(
                event="started", pid=self._born.pid, started_at_ns=self._started_at_ns
            ):
                # Who ordered it has gone: nobody would ever know of this process.
                birth.undo()
                self._give_up()
                return
            if client is not None:
                asked = self._plan.at_once
                self._add_client(client, asked.stdin, asked.stdout, asked.stderr)
            self._relay()
            return
        control.send(event="prepared", pid=self._born.pid)
        if self._hold():
            self._relay()

    def _meanwhile(self, pid: int, channel: Channel) -> None:
        """Do what needs no more than the PID while the child gets ready. A process that is not
        held finds its permission to execute when it asks for it."""
        if self._is_exec:
            self._directory.prepare()
        self._listen()
        if self._plan.at_once is not None:
            self._started_at_ns = time.time_ns()
        self._directory.write_state(pid, self._started_at_ns)
        if self._plan.at_once is not None:
            with contextlib.suppress(Disconnected):
                # A child that has failed meanwhile says why in what is received next.
                channel.send(Message.EXECUTE)

    def _give_up(self) -> None:
        """Leave nothing behind of a process that never ran."""
        if self._log is not None:
            self._log.close()
        self._directory.remove()

    def _listen(self) -> None:
        self._listener = self._directory.listen()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    # --- held ---

    def _hold(self) -> bool:
        """Serve until the engine releases the process; say whether it runs now."""
        self._epoll.register(self._born.channel.fileno(), select.EPOLLIN)
        while not self._started_at_ns:
            for fd, events in self._epoll.poll():
                if fd == self._born.channel.fileno():
                    return self._fail(StepFailed("start", "the first process died", 0, ""))
                if fd in self._controls:
                    operation = self._serve_control(fd, events)
                    if operation == "discard" or not self._controls:
                        self._discard()
                        return False
                    if operation == "release":
                        return self._release()
                else:
                    self._serve(fd, events)
        return True

    def _discard(self) -> None:
        self._birth.undo()
        self._give_up()
        self._tell(event="discarded")

    def _release(self) -> bool:
        channel = self._born.channel
        self._epoll.unregister(channel.fileno())
        try:
            channel.send(Message.EXECUTE)
            _await_execution(channel)
        except Disconnected:  # it has been killed; its end is told after its start
            channel.close()
        except StepFailed as failed:
            return self._fail(failed)
        self._started_at_ns = time.time_ns()
        self._directory.write_state(self._born.pid, self._started_at_ns)
        self._tell(event="started", started_at_ns=self._started_at_ns)
        return True

    def _fail(self, failed: StepFailed) -> bool:
        self._birth.undo()
        self._give_up()
        self._tell(event="failed", **failed.to_json())
        return False

    def _tell(self, **message: Any) -> bool:
        """Tell every engine that is connected; say whether one was."""
        told = [control.send(**message) for control in self._controls.values()]
        return any(told)

    # --- running ---

    def _relay(self) -> None:
        del self._plan  # a long environment need not stay
        born = self._born
        self._epoll.register(born.pidfd, select.EPOLLIN)
        for fd, stream in ((born.stdout, STDOUT), (born.stderr, STDERR)):
            if fd != -1:
                os.set_blocking(fd, False)
                self._outputs[fd] = stream
                self._epoll.register(fd, select.EPOLLIN)
        if born.stdin not in (-1, born.stdout):
            os.set_blocking(born.stdin, False)
            self._epoll.register(born.stdin, 0)
        self._write_stdin()
        deadline = 0.0
        while not (self._died and (not self._outputs or time.monotonic() > deadline)):
            timeout = max(0.0, deadline - time.monotonic()) if self._died else -1
            for fd, events in self._epoll.poll(timeout):
                self._serve(fd, events)
            if self._died and not deadline:
                deadline = time.monotonic() + _LINGER_S
                self._resume(force=True)
                self._drain()
        self._end()

    def _serve(self, fd: int, events: int) -> None:
        if fd in self._outputs:
            self._read_output(fd, events)
            if fd == self._born.stdin and events & select.EPOLLOUT:
                self._write_stdin()
        elif fd in self._clients:
            self._serve_client(fd, events)
        elif fd == self._born.stdin:
            self._stdin_event(events)
        elif fd == self._born.pidfd:
            self._reap()
        elif fd == self._listener.fileno():
            self._accept()
        elif fd in self._newcomers:
            self._greet(fd)
        elif fd in self._controls:
            self._serve_control(fd, events)

    def _reap(self) -> None:
        self._epoll.unregister(self._born.pidfd)
        _, status = os.waitpid(self._born.pid, 0)
        self._code = process.status_code(status)
        self._finished_at_ns = time.time_ns()
        self._died = True
        if self._creates_cgroup:
            # With a shared PID namespace the kernel does not end the others.
            self._cgroup.kill()

    # --- output ---

    def _read_output(self, fd: int, events: int) -> None:
        if not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            count = self._read(fd)
        except BlockingIOError:
            return
        if not count:
            self._close_output(fd)
            return
        if count == _PIPE_BYTES and self._log is None:
            # The program waits for room: a larger pipe means fewer turns between the two. A log
            # turns short lines into many times their size in memory, there it stays small.
            _enlarge_pipe(fd)
        self._broadcast(self._outputs[fd], count)
        if count == len(self._buffer) - HEADER_BYTES < _READ_BYTES:
            self._buffer = _make_buffer(min(count * _GROWTH, _READ_BYTES))

    def _read(self, fd: int) -> int:
        """Read into the buffer, behind the place of a frame's header; return 0 at the end."""
        if not self._buffer:
            self._buffer = _make_buffer(_FIRST_READ_BYTES)
        try:
            return os.readv(fd, (self._buffer[HEADER_BYTES:],))
        except BlockingIOError:
            raise
        except OSError:  # EIO: a terminal that nobody has open any more
            return 0

    def _close_output(self, fd: int) -> None:
        del self._outputs[fd]
        self._epoll.unregister(fd)
        if fd != self._born.stdin:
            os.close(fd)

    def _broadcast(self, stream: int, count: int) -> None:
        """Give the first ``count`` bytes of the buffer to the log and to all clients."""
        packet = self._buffer[: HEADER_BYTES + count]
        data = packet[HEADER_BYTES:]
        if self._log is not None:
            self._log.write("stdout" if stream == STDOUT else "stderr", bytes(data))
        if not self._clients:
            return
        if self._streams.tty:
            packet = data
        else:
            write_header(packet, stream, count)
        for client in list(self._clients.values()):
            if stream in client.streams:
                client.send(packet)
                self._update_client(client)
        if not self._died and any(client.full for client in self._clients.values()):
            self._pause()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            for fd in self._outputs:
                self._epoll.modify(fd, 0)

    def _resume(self, *, force: bool = False) -> None:
        if self._paused and (force or not any(c.full for c in self._clients.values())):
            self._paused = False
            for fd in self._outputs:
                self._epoll.modify(fd, select.EPOLLIN)
            self._update_stdin()

    def _drain(self) -> None:
        """Read what is there after the end; a terminal has no end of file while its other side
        is held open here."""
        for fd in list(self._outputs):
            while fd in self._outputs:
                try:
                    count = self._read(fd)
                except BlockingIOError:
                    if self._streams.tty:
                        self._close_output(fd)
                    break
                if not count:
                    self._close_output(fd)
                else:
                    self._broadcast(self._outputs[fd], count)

    # --- input ---

    def _stdin_event(self, events: int) -> None:
        if events & select.EPOLLERR:  # nobody reads any more
            self._close_stdin()
        else:
            self._write_stdin()

    def _write_stdin(self) -> None:
        if self._stdin:
            try:
                written = os.write(self._born.stdin, self._stdin)
            except BlockingIOError:
                written = 0
            except OSError:
                self._close_stdin()
                return
            del self._stdin[:written]
        if not self._stdin and self._stdin_closing:
            self._close_stdin()
            return
        self._update_stdin()

    def _update_stdin(self) -> None:
        fd = self._born.stdin
        if fd == -1:
            return
        wanted = select.EPOLLOUT if self._stdin else 0
        if fd in self._outputs and not self._paused:
            wanted |= select.EPOLLIN
        with contextlib.suppress(FileNotFoundError):
            self._epoll.modify(fd, wanted)
        for client in list(self._clients.values()):
            self._update_client(client)

    def _close_stdin(self) -> None:
        fd = self._born.stdin
        self._stdin.clear()
        if fd == -1 or self._streams.tty:
            return
        self._born.stdin = -1
        with contextlib.suppress(FileNotFoundError):
            self._epoll.unregister(fd)
        os.close(fd)

    # --- clients ---

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        self._newcomers[connection.fileno()] = Control(connection)
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _greet(self, fd: int) -> None:
        newcomer = self._newcomers[fd]
        data = newcomer.receive()
        if data is None:
            return
        line, newline, rest = newcomer.buffer.partition(b"\n")
        if not newline and data and len(newcomer.buffer) < _LINE_LIMIT_BYTES:
            return
        self._epoll.unregister(fd)
        del self._newcomers[fd]
        try:
            order = json.loads(line)
            operation = order["op"]
        except (ValueError, KeyError, TypeError):
            operation = ""
        if operation == "keep-names" and newcomer.fds:
            self._keep_names(newcomer.fds)
            newcomer.fds = []
        for unasked in newcomer.fds:
            os.close(unasked)
        if operation == "attach":
            self._attach(newcomer, order, rest)
        elif operation == "control":
            newcomer.buffer = rest
            self._add_control(newcomer)
            newcomer.send(
                event="status",
                key=self._key,
                pid=self._born.pid,
                started_at_ns=self._started_at_ns,
            )
        else:
            if operation in ("names", "keep-names"):
                self._give_names(newcomer)
            newcomer.connection.close()

    def _keep_names(self, fds: list[int]) -> None:
        for old in self._born.name_sockets:
            os.close(old)
        self._born.name_sockets = tuple(fds)

    def _give_names(self, newcomer: Control) -> None:
        answer = json.dumps({"event": "names"}).encode() + b"\n"
        with contextlib.suppress(OSError):  # who asked has gone
            socket.send_fds(newcomer.connection, [answer], self._born.name_sockets)

    def _attach(self, newcomer: Control, order: dict[str, Any], typed: bytes) -> None:
        newcomer.send(event="attached")
        self._add_client(
            newcomer.connection,
            bool(order.get("stdin")),
            bool(order.get("stdout")),
            bool(order.get("stderr")),
            typed,
        )

    def _add_client(
        self, connection: socket.socket, stdin: bool, stdout: bool, stderr: bool, typed: bytes = b""
    ) -> None:
        client = AttachClient(
            connection,
            stdin=stdin and self._streams.open_stdin,
            stdout=stdout,
            stderr=stderr,
        )
        self._clients[client.fileno()] = client
        self._epoll.register(client.fileno(), 0)
        self._take_input(typed)
        self._update_client(client)

    def _update_client(self, client: AttachClient) -> None:
        if not client.alive:
            self._drop(client)
            return
        events = select.EPOLLOUT if client.pending else 0
        if client.stdin and len(self._stdin) < _STDIN_LIMIT_BYTES:
            events |= select.EPOLLIN
        self._epoll.modify(client.fileno(), events)

    def _serve_client(self, fd: int, events: int) -> None:
        client = self._clients[fd]
        if events & select.EPOLLOUT:
            client.flush()
        if client.stdin and events & (select.EPOLLIN | select.EPOLLHUP):
            data = client.receive()
            if data == b"":
                client.stdin = False
                self._input_ended()
            elif data:
                self._take_input(data)
        elif events & (select.EPOLLHUP | select.EPOLLERR):
            client.alive = False
        self._update_client(client)
        self._resume()

    def _take_input(self, data: bytes) -> None:
        if not data or self._born.stdin == -1 or self._died:
            return
        if self._started_at_ns and not self._stdin:
            try:
                written = os.write(self._born.stdin, data)
            except OSError:  # no room, or no reader: found out again, and said, below
                written = 0
            if written < len(data) and not self._streams.tty:
                _enlarge_pipe(self._born.stdin)
            data = data[written:]
        if data:
            self._stdin += data
            if self._started_at_ns:
                self._write_stdin()

    def _input_ended(self) -> None:
        if self._streams.stdin_once and not self._streams.tty:
            self._stdin_closing = True
            if self._started_at_ns:
                self._write_stdin()

    def _drop(self, client: AttachClient) -> None:
        if self._clients.pop(client.fileno(), None) is None:
            return
        self._epoll.unregister(client.fileno())
        was_reader = client.stdin
        client.close()
        if was_reader:
            self._input_ended()
        self._resume()

    # --- control ---

    def _add_control(self, control: Control) -> None:
        control.connection.setblocking(False)
        self._controls[control.fileno()] = control
        self._epoll.register(control.fileno(), select.EPOLLIN)

    def _serve_control(self, fd: int, events: int) -> str:
        """Take orders; return ``release`` or ``discard`` where one of them is that."""
        control = self._controls[fd]
        try:
            data = control.connection.recv(_LINE_LIMIT_BYTES)
        except BlockingIOError:
            return ""
        except OSError:
            data = b""
        if not data:
            self._epoll.unregister(fd)
            del self._controls[fd]
            control.connection.close()
            return ""
        *lines, control.buffer = (control.buffer + data).split(b"\n")
        result = ""
        for line in lines:
            result = self._obey(json.loads(line)) or result
        return result

    def _obey(self, order: dict[str, Any]) -> str:
        operation: str = order["op"]
        if operation == "resize" and self._streams.tty:
            with contextlib.suppress(OSError):
                terminal.resize(self._born.stdout, order["rows"], order["columns"])
        elif operation == "signal" and not self._died:
            process.signal_pidfd(self._born.pidfd, order["number"])
        return operation if operation in ("release", "discard") else ""

    # --- the end ---

    def _end(self) -> None:
        oom_killed = own_limit = False
        memory = MemoryReading()
        for fd in list(self._outputs):
            self._close_output(fd)
        if self._log is not None:
            self._log.close()
        if self._creates_cgroup:
            oom_killed = self._cgroup.oom_kills() > 0
            own_limit = oom_killed and self._cgroup.came_to_memory_limit()
            memory = self._cgroup.memory_reading()
            with contextlib.suppress(Exception):
                # What is left is the engine's to remove; the exit must be told in any case.
                self._cgroup.remove()
        self._epoll.unregister(self._listener.fileno())
        self._listener.close()
        ended = Exit(
            self._code,
            self._finished_at_ns,
            oom_killed,
            own_memory_limit=own_limit,
            memory_peak_bytes=memory.peak,
            memory_cache_bytes=memory.cache,
        )
        if self._is_exec and self._controls:
            self._drop_served_clients()
            if self._tell(event="exit", **as_dict(ended)):
                self._flush_clients()
                self._directory.remove()
                return
        self._directory.write_exit(ended)
        self._tell(event="exit", **as_dict(ended))
        self._drop_served_clients()
        self._flush_clients()
        if self._log is not None:
            self._log.settle()

    def _drop_served_clients(self) -> None:
        for client in list(self._clients.values()):
            client.stdin = False
            self._update_client(client)
            if not client.pending:
                self._drop(client)

    def _flush_clients(self) -> None:
        deadline = time.monotonic() + _FLUSH_S
        while self._clients and (left := deadline - time.monotonic()) > 0:
            for fd, events in self._epoll.poll(left):
                if fd not in self._clients:
                    with contextlib.suppress(OSError):
                        self._epoll.unregister(fd)
                    continue
                client = self._clients[fd]
                self._serve_client(fd, events)
                if not client.pending:
                    self._drop(client)


def _make_buffer(size_bytes: int) -> memoryview:
    return memoryview(bytearray(HEADER_BYTES + size_bytes))


def _enlarge_pipe(fd: int) -> None:
    with contextlib.suppress(OSError):  # the limit of pipe-user-pages-soft; no pipe at all
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _READ_BYTES)


def _await_execution(channel: Channel) -> None:
    """Wait until the child has become the program. Raises ``StepFailed``."""
    with contextlib.suppress(Disconnected):
        channel.receive()
    channel.close()
