"""How a monitor brings its process to life: cgroup, namespaces, pipes, clone, handshake.

Everything acquired here is released by ``Birth.undo`` where a step fails.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import stat
from collections.abc import Callable

from deskd.errors import DeskdError
from deskd.kernel import namespaces, process, rtnetlink_raw
from deskd.kernel.cgroup import Cgroup
from deskd.kernel.mount import open_tree
from deskd.record import Record
from deskd.runtime.child import Child
from deskd.runtime.handshake import Channel, Disconnected, Message, StepFailed
from deskd.runtime.plan import HOST, PRIVATE, ExecTarget, Plan
from deskd.runtime.rootfs import Root, clone_source, detach_from_engine

_TAKES_NO_PROCESSES = (errno.EBUSY, errno.EOPNOTSUPP)
"""What clone3(2) answers for a version 2 cgroup that hands controllers down, or is threaded."""
_CGROUP_FILE_BYTES = 65536
"""A line for each hierarchy; one read gets them all."""
_CLONE_KINDS = ("mnt", "uts", "ipc", "net", "pid", "user")


class Born(Record, frozen=False):
    """A held process and the monitor's ends of its stdio; -1 where there is none. With a
    terminal ``stdin`` and ``stdout`` are both its master."""

    pid: int
    pidfd: int
    channel: Channel
    stdin: int = -1
    stdout: int = -1
    stderr: int = -1
    terminal_slave: int = -1
    name_sockets: tuple[int, ...] = ()


class _Pipes(Record, frozen=False):
    child: tuple[int, int, int]
    stdin: int
    stdout: int
    stderr: int

    def close_child_ends(self) -> None:
        for fd in self.child:
            os.close(fd)

    def give_to(self, owner: tuple[int, int]) -> None:
        """Make the container's root the owner, so that it can hand them to its users."""
        if owner != (0, 0):
            for fd in self.child:
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    os.fchown(fd, *owner)


class Birth(Record, frozen=False):
    """One attempt."""

    plan: Plan
    cgroup: Cgroup
    staging: str
    _pid: int = 0
    _target_fd: int = -1
    _cgroup_made: bool = False

    def run(self, meanwhile: Callable[[int, Channel], None]) -> Born:
        """Make the process up to where it is held. ``meanwhile`` is called with its PID and the
        channel to it while it gets ready. Raises ``StepFailed``, ``DeskdError`` or ``OSError``;
        then nothing of it is left."""
        try:
            return self._run(meanwhile)
        except BaseException as error:
            self.undo()
            if self.plan.target is not None and _tells_of_death(error):
                raise _not_running(self.plan.target) from error
            raise

    def rehearse(self) -> None:
        """Do what comes before the clone and has no effects (``runtime.rehearsal``)."""
        for end in Channel.pair():
            end.close()
        pipes = _make_pipes(open_stdin=False)
        for fd in (*pipes.child, pipes.stdout, pipes.stderr):
            os.close(fd)
        target = self.plan.target
        if target is not None:
            self._target_fd = os.pidfd_open(target.pid)
            with contextlib.suppress(StepFailed):
                _check_target(target)
            _mapped_root(self.plan)
            os.close(self._target_fd)

    def undo(self) -> None:
        """Kill and reap the process, remove its cgroup."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0
        if self._cgroup_made:
            self._cgroup_made = False
            self.cgroup.kill()
            self.cgroup.remove()

    def _run(self, meanwhile: Callable[[int, Channel], None]) -> Born:
        plan = self.plan
        ours, theirs = Channel.pair()
        pipes = None if plan.streams.tty else _make_pipes(open_stdin=plan.streams.open_stdin)
        if plan.target is not None:
            self._target_fd = os.pidfd_open(plan.target.pid)
            _check_target(plan.target)
        if pipes is not None:
            pipes.give_to(_mapped_root(plan))
        trees = self._make_trees()
        # The version 2 directory must be there for the clone; the others can wait until the
        # child is busy with its mounts.
        early = plan.cgroup.create and self.cgroup.version == 2
        if early:
            self._make_cgroup()
        self._pid = self._clone(ours, theirs, pipes, trees)
        theirs.close()
        for done in (*trees, self._target_fd if plan.target is not None else None):
            if done is not None:
                os.close(done)
        if pipes is not None:
            pipes.close_child_ends()
        pidfd = os.pidfd_open(self._pid)
        if plan.namespaces.user == PRIVATE and plan.root is not None:
            namespaces.write_maps(self._pid, plan.namespaces.uid_map, plan.namespaces.gid_map)
            ours.send(Message.MAPPED)
        try:
            if plan.cgroup.create and not early:
                self._make_cgroup()
                if plan.namespaces.user != HOST:
                    self.cgroup.add(self._pid)  # its own rights end at its namespace
            if plan.process.oom_score_adj != _own_oom_score():
                _set_oom_score(self._pid, plan.process.oom_score_adj)
            self._send_outside_messages()
        except (StepFailed, DeskdError, OSError):
            # A child that has failed meanwhile took its namespaces and links along.
            if not ours.ended:
                raise
        with contextlib.suppress(Disconnected):
            # A child that has failed meanwhile says why in what is received next.
            ours.send(Message.OUTSIDE_READY)
        meanwhile(self._pid, ours)
        return self._meet(ours, pidfd, pipes)

    def _make_cgroup(self) -> None:
        self._cgroup_made = True
        self.cgroup.create()
        self.cgroup.apply(self.plan.cgroup.limits)

    def _make_trees(self) -> tuple[int | None, ...]:
        """Make the mounts that a user namespace's root may not: its file system with the
        engine's attributes, and binds from where it cannot go. A mount namespace of its own
        keeps them to this moment; the detached copies go to the child."""
        plan = self.plan
        if plan.root is None or plan.namespaces.user == HOST:
            return ()
        own = namespaces.open_namespace("self", "mnt")
        trees: list[int | None] = []
        try:
            namespaces.unshare(namespaces.CLONE_NEWNS)
            detach_from_engine()
            root = Root(self.staging)
            root.build(plan.root.steps)
            trees.append(open_tree("", directory_fd=root.fd, recursive=True))
            os.close(root.fd)
            trees += [
                clone_source(step) if step.kind == "bind" else None for step in plan.root.mounts
            ]
        except OSError as error:
            text = f"{error.filename or ''}: {error.strerror}"
            raise StepFailed("root", text, error.errno or 0, "SystemFailure") from error
        finally:
            namespaces.setns(own, namespaces.CLONE_NEWNS)
            os.close(own)
        return tuple(trees)

    def _clone(
        self,
        ours: Channel,
        theirs: Channel,
        pipes: _Pipes | None,
        trees: tuple[int | None, ...],
    ) -> int:
        spaces, flags = self.plan.namespaces, 0
        if self.plan.target is not None:
            # The PID namespace entered is the one that children are born into.
            namespaces.setns(self._target_fd, namespaces.CLONE_NEWPID)
        else:
            for name in _CLONE_KINDS:
                if getattr(spaces, name) == PRIVATE:
                    flags |= namespaces.FLAGS[name]
        try:
            if spaces.user not in (PRIVATE, HOST):
                pid = self._clone_below(flags)
            else:
                if spaces.pid not in (PRIVATE, HOST):
                    namespaces.enter(spaces.pid, "pid")
                pid = self._clone_into_cgroup(flags)
        except OSError as error:
            raise StepFailed(
                "namespaces", f"{error.strerror}", error.errno or 0, "SystemFailure"
            ) from error
        if pid == 0:
            ours.close()
            stdio = pipes.child if pipes else None
            Child(self.plan, theirs, self.cgroup, stdio, self.staging, trees, self._target_fd).run()
        return pid

    def _clone_into_cgroup(self, flags: int) -> int:
        """Clone into the plan's cgroup; an exec goes where the container's first process is
        where the container has made its own cgroup one that takes no processes."""
        cgroup_fd = self.cgroup.open()
        try:
            return process.clone(flags, cgroup_fd)
        except OSError as error:
            target = self.plan.target
            if target is None or error.errno not in _TAKES_NO_PROCESSES:
                raise
            beside_fd = self.cgroup.open_beside(target.pid)
            if beside_fd is None:
                raise
            try:
                return process.clone(flags, beside_fd)
            finally:
                os.close(beside_fd)
        finally:
            if cgroup_fd is not None:
                os.close(cgroup_fd)

    def _clone_below(self, flags: int) -> int:
        """Clone from inside another container's user namespace, to which the new namespaces then
        belong; return the child's PID, 0 in the child.

        This process cannot go there, it would not come back: a helper does, whose child is made
        this process's.
        """
        spaces = self.plan.namespaces
        kinds = ("user",) if spaces.pid in (PRIVATE, HOST) else ("user", "pid")
        opened = [(n, namespaces.open_namespace(getattr(spaces, n), n)) for n in kinds]
        cgroup_fd = self.cgroup.open()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        helper = process.clone(0)
        if helper == 0:
            try:
                for name, fd in opened:
                    namespaces.setns(fd, namespaces.FLAGS[name])
                pid = process.clone(flags | process.CLONE_PARENT, cgroup_fd)
                if pid == 0:
                    return 0
                os.write(writing, f"{pid}".encode())
            except OSError as error:
                os.write(writing, f"-{error.errno or errno.EINVAL}".encode())
            os._exit(0)
        for done in (writing, cgroup_fd, *(fd for _, fd in opened)):
            if done is not None:
                os.close(done)
        try:
            answer = int(os.read(reading, 32) or -errno.EINVAL)
        finally:
            os.close(reading)
            os.waitpid(helper, 0)
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return answer

    def _send_outside_messages(self) -> None:
        try:
            for network in self.plan.networks:
                rtnetlink_raw.send(
                    [
                        message
                        if offset is None
                        else rtnetlink_raw.patch_pid(message, offset, self._pid)
                        for message, offset in zip(
                            network.outside, network.outside_pid_offsets, strict=True
                        )
                    ]
                )
        except OSError as error:
            text = f"{error.strerror or error}"
            raise StepFailed("network", text, error.errno or 0, "SystemFailure") from error

    def _meet(self, channel: Channel, pidfd: int, pipes: _Pipes | None) -> Born:
        try:
            born = Born(self._pid, pidfd, channel)
            if pipes is not None:
                born.stdin, born.stdout, born.stderr = pipes.stdin, pipes.stdout, pipes.stderr
            else:
                master, slave = channel.expect(Message.CONSOLE)
                born.stdin = born.stdout = master
                born.terminal_slave = slave
            if self.plan.name_sockets:
                born.name_sockets = tuple(channel.expect(Message.NAMES))
            channel.expect(Message.PREPARED)
        except Disconnected:
            _, status = os.waitpid(self._pid, 0)
            self._pid = 0
            code = process.status_code(status)
            target = self.plan.target
            if target is not None and code == 128 + signal.SIGKILL:
                raise StepFailed(
                    "",
                    f"container {target.container_id[:12]} is ending or out of memory: the process"
                    " was killed while it was being started",
                    0,
                    "Conflict",
                ) from None
            raise StepFailed(
                "start", f"the first process died early (exit code {code})", 0, "SystemFailure"
            ) from None
        return born


def failure_of(error: Exception) -> StepFailed:
    """Put whatever a birth raised into the form that the engine is told."""
    if isinstance(error, StepFailed):
        return error
    if isinstance(error, DeskdError):
        return StepFailed("", str(error), 0, type(error).__name__)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror or error}"
        return StepFailed("monitor", text, error.errno or 0, "SystemFailure")
    return StepFailed("monitor", repr(error), 0, "SystemFailure")


def _make_pipes(*, open_stdin: bool) -> _Pipes:
    if open_stdin:
        stdin_read, stdin_write = os.pipe()
    else:
        stdin_read, stdin_write = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
    stdout_read, stdout_write = os.pipe()
    stderr_read, stderr_write = os.pipe()
    return _Pipes((stdin_read, stdout_write, stderr_write), stdin_write, stdout_read, stderr_read)


def _check_target(target: ExecTarget) -> None:
    """A PID alone could be another process's by now; its cgroup says whose it is."""
    try:
        fd = os.open(f"/proc/{target.pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
        try:
            ours = target.container_id.encode() in os.read(fd, _CGROUP_FILE_BYTES)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        ours = False
    if not ours:
        raise _not_running(target)


def _tells_of_death(error: BaseException) -> bool:
    """Whether an exec failed because its container ended meanwhile: its namespaces cannot be
    opened any more, or fork(2) finds a PID namespace without its first process (ENOMEM)."""
    if isinstance(error, StepFailed):
        gone = (errno.ENOENT, errno.ESRCH, errno.ENOMEM)
        return error.step.startswith("namespaces") and error.number in gone
    return isinstance(error, FileNotFoundError | ProcessLookupError)


def _not_running(target: ExecTarget) -> StepFailed:
    return StepFailed("", f"container {target.container_id[:12]} is not running", 0, "Conflict")


def _mapped_root(plan: Plan) -> tuple[int, int]:
    """Return the IDs outside of the container's root."""
    spaces = plan.namespaces
    if plan.target is not None:
        if namespaces.same(plan.target.pid, "user"):
            return 0, 0
        with open(f"/proc/{plan.target.pid}/uid_map") as file:
            uid = int(file.readline().split()[1])
        with open(f"/proc/{plan.target.pid}/gid_map") as file:
            return uid, int(file.readline().split()[1])
    if spaces.user == HOST:
        return 0, 0
    uids = [outside for inside, outside, _ in spaces.uid_map if inside == 0]
    gids = [outside for inside, outside, _ in spaces.gid_map if inside == 0]
    if not uids or not gids:
        raise StepFailed("user namespace", "the ID maps have no root", 0, "InvalidArgument")
    return uids[0], gids[0]


@functools.cache
def _own_oom_score() -> int:
    """Return what a container's process inherits: an engine may be spared more than containers."""
    with open("/proc/self/oom_score_adj") as file:
        return int(file.read())


def _set_oom_score(pid: int, value: int) -> None:
    try:
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except PermissionError as error:
        raise StepFailed(
            "oom score",
            f"the engine may not lower the OOM score to {value}: it lacks CAP_SYS_RESOURCE",
            error.errno or 0,
            "Forbidden",
        ) from error
