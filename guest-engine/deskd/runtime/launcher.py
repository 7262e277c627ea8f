"""The launcher: a small, resident, single-threaded process that every container is born from.

The engine starts it before anything else. It takes orders over a socket pair, forks
for each one and forgets the child: a monitor for a plan, a short-lived process for a job. The
engine's end closing is its order to leave; its monitors stay.

An order is a header (kind, length), the payload, and the descriptors that travel with the
header. The first descriptor is the connection on which the child itself answers.

While it is idle the launcher keeps one monitor forked in advance: the pages that a fresh fork must
first copy (some five hundred) are copied before anybody waits for them.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
from typing import Any, NoReturn

from deskd.errors import DeskdError, InvalidArgument
from deskd.kernel import capabilities, process
from deskd.kernel.cgroup import cgroup_at
from deskd.kernel.cgroup.hierarchy import Hierarchy, detect
from deskd.layout import ExecRoot
from deskd.record import Record, finish
from deskd.runtime.credentials import ignore_signals, reset_signals
from deskd.runtime.jobs import JOBS
from deskd.runtime.monitor import Monitor
from deskd.runtime.plan import decode
from deskd.runtime.rehearsal import rehearse, sample_orders

HEADER = struct.Struct(">cI")
CREATE = b"c"
JOB = b"j"
MAX_FDS = 16
_IDLE_MS = 30
"""How long no order must have come before the next spare monitor is forked: by then a short
program has ended, and does not share the processors with it."""


def main(arguments: list[str]) -> None:
    """Be the launcher: take orders until the engine's end of the socket is closed.

    The arguments are those of ``launching.fork_launcher``: descriptor, exec root, and the cgroup
    hierarchy as JSON, which is looked for where it is ``null``.
    """
    fd, exec_root, given = arguments
    orders = socket.socket(fileno=int(fd))
    orders.set_inheritable(False)
    hierarchy = json.loads(given)
    found = detect() if hierarchy is None else Hierarchy(**hierarchy)
    _Launcher(orders, ExecRoot(exec_root), found).serve()


class _Launcher:
    def __init__(self, orders: socket.socket, exec_root: ExecRoot, hierarchy: Hierarchy) -> None:
        self._orders = orders
        self._exec_root = exec_root
        self._hierarchy = hierarchy
        self._spare: socket.socket | None = None
        self._sample_orders: tuple[bytes, ...] = ()

    def serve(self) -> None:
        """Take orders until the engine's end is closed."""
        os.setsid()
        os.chdir("/")
        os.umask(0o022)
        os.makedirs(self._exec_root.processes, 0o700, exist_ok=True)
        reset_signals()
        ignore_signals()
        # The kernel reaps: nobody here asks how a monitor or a job ended.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        process.set_name("desk-launcher")
        # Held children hold engine data; no container may look into them.
        process.prctl(process.PR_SET_DUMPABLE, 0)
        gc.collect()
        gc.disable()
        gc.freeze()
        waiting = select.poll()
        waiting.register(self._orders, select.POLLIN)
        while True:
            if self._spare is None and not waiting.poll(_IDLE_MS):
                self._make_spare()
            header, fds = self._receive_header()
            if not header:
                return
            kind, length = HEADER.unpack(header)
            payload = self._receive(length)
            taken = kind == CREATE and self._hand_over(header + payload, fds)
            if not taken and os.fork() == 0:
                self._child(kind, payload, fds)
            for fd in fds:
                os.close(fd)
            del payload

    def _make_spare(self) -> None:
        if not self._sample_orders:
            # What every child would do for itself, left until nobody waits.
            self._sample_orders = sample_orders()
            finish(Record)
            process.boot_id()
            capabilities.remember_bounding_set()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        if os.fork() == 0:
            ours.close()
            self._orders.close()
            self._orders = theirs
            self._wait_as_spare()
        theirs.close()
        self._spare = ours

    def _wait_as_spare(self) -> NoReturn:
        try:
            process.set_name("desk-spare")
            _leave_launcher()
            os.setsid()
            waiting = select.poll()
            waiting.register(self._orders, select.POLLIN)
            for order in self._sample_orders:
                if waiting.poll(0):
                    break
                rehearse(order, self._hierarchy, self._exec_root)
            header, fds = self._receive_header()
            if header:
                kind, length = HEADER.unpack(header)
                payload = self._receive(length)
                self._orders.close()
                self._carry_out(kind, payload, fds)
        finally:
            os._exit(0)

    def _hand_over(self, order: bytes, fds: list[int]) -> bool:
        """Give an order to the spare monitor; say whether there was one to take it."""
        if self._spare is None:
            return False
        spare, self._spare = self._spare, None
        with spare:
            try:
                sent = socket.send_fds(spare, [order], fds)
                # A spare that has the whole order may have closed its end already: sending even
                # nothing would fail then, and the order would be carried out twice.
                if sent < len(order):
                    spare.sendall(memoryview(order)[sent:])
            except OSError:  # somebody has killed it
                return False
        return True

    def _receive_header(self) -> tuple[bytes, list[int]]:
        header, fds, _, _ = socket.recv_fds(self._orders, HEADER.size, MAX_FDS)
        while header and len(header) < HEADER.size:
            more = self._orders.recv(HEADER.size - len(header))
            if not more:
                return b"", fds
            header += more
        return header, list(fds)

    def _receive(self, length: int) -> bytes:
        parts, left = [], length
        while left:
            part = self._orders.recv(min(left, 1 << 20))
            if not part:
                raise ConnectionError("the engine left in the middle of an order")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _child(self, kind: bytes, payload: bytes, fds: list[int]) -> NoReturn:
        try:
            self._orders.close()
            if self._spare is not None:
                self._spare.close()
            _leave_launcher()
            if kind == CREATE:
                os.setsid()
            self._carry_out(kind, payload, fds)
        finally:
            os._exit(0)

    def _carry_out(self, kind: bytes, payload: bytes, fds: list[int]) -> None:
        try:
            answer, *rest = fds
            connection = socket.socket(fileno=answer)
            if kind == CREATE:
                self._monitor(payload, connection, rest)
            else:
                _run_job(payload, connection, rest)
        except BaseException:  # noqa: BLE001 - a forked child must not return to its caller
            self._leave_note(payload)

    def _monitor(self, payload: bytes, connection: socket.socket, fds: list[int]) -> None:
        process.set_name("desk-monitor")
        plan = decode(json.loads(payload))
        del payload
        cgroup = cgroup_at(self._hierarchy, plan.cgroup.parent, plan.cgroup.name)
        client = socket.socket(fileno=fds[0]) if fds else None
        Monitor(plan, cgroup, self._exec_root).run(connection, client)

    def _leave_note(self, payload: bytes) -> None:
        """A monitor has no terminal and no log of its own; what broke it goes beside its files."""
        import traceback

        try:
            key = json.loads(payload)["key"]
            with open(f"{self._exec_root.process(key)}/monitor.log", "a") as file:
                traceback.print_exc(file=file)
        except (OSError, ValueError, KeyError):
            os._exit(2)


def _leave_launcher() -> None:
    """Give up what a child has of the launcher: its way to reap, and the engine's stdio, which
    must not stay open in what outlives it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def _run_job(payload: bytes, connection: socket.socket, fds: list[int]) -> None:
    process.set_name("desk-job")
    process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)
    order = json.loads(payload)
    answer: dict[str, Any]
    try:
        answer = {"result": _job_function(order["job"])(order["arguments"], fds)}
    except DeskdError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        text = f"{order['job']}: {where}{error.strerror or error}"
        answer = {"error": "SystemFailure", "text": text}
    except Exception as error:  # noqa: BLE001 - the engine is told, whatever it was
        import traceback

        text = f"the job {order['job']} broke: {error!r} {traceback.format_exc()}"
        answer = {"error": "SystemFailure", "text": text}
    connection.sendall(json.dumps(answer).encode())


def _job_function(name: str) -> Any:
    try:
        module, _, function = JOBS[name].partition(":")
    except KeyError:
        raise InvalidArgument(f"there is no job named {name!r}") from None
    return getattr(importlib.import_module(module), function)
