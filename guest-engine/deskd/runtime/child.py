"""The first process of a container or exec, from its birth to the program's execution.

Called by the monitor right after ``clone``; never returns. Everything it does comes from the
plan; the talk with the monitor is in ``handshake``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from deskd.errors import DeskdError
from deskd.kernel import (
    apparmor,
    name_sockets,
    namespaces,
    network_sysctls,
    process,
    rtnetlink_raw,
)
from deskd.kernel import mount as sys_mount
from deskd.kernel.cgroup import Cgroup
from deskd.kernel.probe import explain
from deskd.record import Record
from deskd.runtime import credentials, system_mounts, terminal
from deskd.runtime.handshake import Channel, Disconnected, Message, StepFailed
from deskd.runtime.plan import HOST, PRIVATE, Plan, RootSpec
from deskd.runtime.rootfs import Root, detach_from_engine, remount_root_read_only

_EXEC_NAMESPACES = (
    namespaces.CLONE_NEWIPC
    | namespaces.CLONE_NEWUTS
    | namespaces.CLONE_NEWNET
    | namespaces.CLONE_NEWCGROUP
    | namespaces.CLONE_NEWNS
)


class Child(Record, frozen=False):
    """What the child has at its birth. ``stdio`` are its ends of the pipes (none for a
    terminal); ``staging`` is a directory for the root to be mounted on. ``trees`` are detached
    mounts that only the monitor could make (user namespaces): the root's first, then one for each
    of the plan's mounts, ``None`` where it is not a bind. ``target_fd`` is the pidfd of the
    container's first process, for an exec."""

    plan: Plan
    channel: Channel
    cgroup: Cgroup
    stdio: tuple[int, int, int] | None
    staging: str
    trees: tuple[int | None, ...] = ()
    target_fd: int = -1
    step: str = "start"
    own_user_namespace: bool = False
    _staging_fd: int = -1
    _apparmor_fd: int = -1

    def run(self) -> NoReturn:
        """Do everything; end in ``execve`` or in ``_exit``."""
        try:
            self._run()
        except StepFailed as failed:
            self._tell(failed)
        except Disconnected:
            os._exit(1)
        except DeskdError as error:
            self._tell(StepFailed(self.step, str(error), 0, type(error).__name__))
        except OSError as error:
            self._tell(_from_os_error(self.step, error))
        except BaseException as error:  # noqa: BLE001 - the last line before the process ends
            self._tell(StepFailed(self.step, repr(error), 0, "SystemFailure"))
        os._exit(1)

    def _tell(self, failed: StepFailed) -> None:
        try:
            self.channel.send(Message.FAILED, **failed.to_json())
        except Disconnected:
            return

    def _run(self) -> None:
        plan = self.plan
        process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        os.umask(0)
        filter_bytes = _read_filter(plan.process.seccomp)
        if plan.process.apparmor:
            self._at("apparmor", self._open_apparmor)
        if plan.root is not None and plan.namespaces.user != HOST:
            self.own_user_namespace = True
            self._at("user namespace", self._become_mapped_root)
        self._at("session keyring", _new_keyring)
        if plan.root is not None:
            self._build_container(plan.root)
        else:
            self._enter_container()
        self.step = "process"
        program = credentials.prepare(
            plan.process,
            filter_bytes,
            make_directory=plan.root is not None,
            own_user_namespace=self.own_user_namespace,
        )
        self.channel.send(Message.PREPARED)
        self.channel.expect(Message.EXECUTE)
        self.step = "exec"
        credentials.execute(program, self._apparmor_fd)

    def _open_apparmor(self) -> None:
        self._apparmor_fd = apparmor.open_attribute()

    def _at(self, step: str, action: Callable[[], None]) -> None:
        self.step = step
        action()

    def _become_mapped_root(self) -> None:
        # Opened while the engine's directories can still be walked.
        self._staging_fd = os.open(self.staging, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if self.plan.namespaces.user == PRIVATE:
            self.channel.expect(Message.MAPPED)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)

    # --- a new container ---

    def _build_container(self, spec: RootSpec) -> None:
        plan, spaces = self.plan, self.plan.namespaces
        user_ns = spaces.user != HOST
        self._at("mount propagation", lambda: self._cut_off(spec.propagation))
        shm = self._shared_shm()
        self._join_shared()
        if spec.hostname:
            self._at("host name", lambda: socket.sethostname(spec.hostname))
        if spec.domainname:
            self._at("domain name", lambda: namespaces.setdomainname(spec.domainname))
        root = Root(self.staging)
        self._mount_root(root, spec)
        self.step = "mounts of /proc and /dev"
        own_ipc = not user_ns or spaces.ipc != HOST
        system_mounts.mount_proc_and_dev(root, spec, shm, user_ns=user_ns, own_ipc=own_ipc)
        self.step = "mount of /sys"
        own_network = not user_ns or spaces.net != HOST
        system_mounts.mount_sys(root, spec, own_network=own_network)
        if plan.streams.tty:
            self._at("terminal", lambda: self._open_terminal(root))
        self.channel.expect(Message.OUTSIDE_READY)
        self._enter_cgroup()
        self.step = "mount of /sys/fs/cgroup"
        system_mounts.mount_cgroups(root, self.cgroup, spec, private=spaces.cgroup == PRIVATE)
        trees = self.trees[1:] or (None,) * len(spec.mounts)
        for step, tree in zip(spec.mounts, trees, strict=True):
            self.step = step.describe()
            root.perform_wish(step, tree)
        if spec.init:
            self._at("init", lambda: _bind_init(root, spec.init))
        self._configure_network()
        self._set_sysctls(root, spec)
        self._at("masked paths", lambda: root.mask(spec.masked_paths))
        self._at("read-only paths", lambda: root.make_read_only(spec.read_only_paths))
        self._connect_stdio()
        self.step = "pivot_root"
        root.pivot()
        self._close_engine_files()
        if spec.read_only:
            self.step = "read-only root"
            _prepare_directory(self.plan.process.cwd)
            remount_root_read_only()

    def _cut_off(self, propagation: str) -> None:
        detach_from_engine(propagation)
        if propagation == "rshared":
            _make_parent_private(self.staging)

    def _mount_root(self, root: Root, spec: RootSpec) -> None:
        if self.trees and self.trees[0] is not None:
            self.step = "root"
            root.adopt(self.trees[0], self._staging_fd)
            return
        for step in spec.steps:
            self.step = step.describe()
            root.build_one(step)

    def _join_shared(self) -> None:
        spaces = self.plan.namespaces
        for name in ("ipc", "uts", "net"):
            wanted: str = getattr(spaces, name)
            if wanted not in (PRIVATE, HOST):
                self.step = f"{name} namespace of process {wanted}"
                namespaces.enter(wanted, name)

    def _shared_shm(self) -> int | None:
        """Containers that share IPC share /dev/shm too; the mount is cloned where it lives."""
        wanted = self.plan.namespaces.ipc
        if wanted == HOST:
            return sys_mount.open_tree("/dev/shm")
        if wanted == PRIVATE:
            return None
        self.step = f"/dev/shm of process {wanted}"
        own = namespaces.open_namespace("self", "mnt")
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        namespaces.enter(wanted, "mnt")
        try:
            return sys_mount.open_tree("/dev/shm")
        finally:
            namespaces.setns(own, namespaces.CLONE_NEWNS)
            os.fchdir(root)
            os.chroot(".")
            os.close(root)
            os.close(own)

    def _enter_cgroup(self) -> None:
        self.step = "cgroup"
        if self.cgroup.version == 1 and self.plan.namespaces.user == HOST:
            self.cgroup.join()
        if self.plan.namespaces.cgroup == PRIVATE:
            self.step = "namespaces (cgroup)"
            namespaces.unshare(namespaces.CLONE_NEWCGROUP)

    def _configure_network(self) -> None:
        self.step = "network"
        if self.plan.namespaces.net != PRIVATE:
            return
        messages = [rtnetlink_raw.loopback_up()]
        for network in self.plan.networks:
            messages += network.inside
            for name, value in network.sysctls:
                self.step = f"sysctl {name}"
                network_sysctls.write(name, value)
        self.step = "network"
        rtnetlink_raw.send(messages)
        if self.plan.name_sockets:
            self.step = "name server"
            udp, tcp = name_sockets.make()
            self.channel.send(Message.NAMES, udp.fileno(), tcp.fileno())
            udp.close()
            tcp.close()

    def _set_sysctls(self, root: Root, spec: RootSpec) -> None:
        for name, value in spec.sysctls:
            self.step = f"sysctl {name}"
            path = "/proc/sys/" + name.replace(".", "/")
            try:
                fd = root.open(path, os.O_WRONLY)
            except FileNotFoundError as error:
                text = (
                    f"{self.step}: open {path}: no such file or directory; this kernel has no such "
                    "sysctl, leave it out"
                )
                raise StepFailed(self.step, text, errno.ENOENT, "StartFailed", 127) from error
            try:
                os.write(fd, value.encode())
            except OSError as error:
                text = f"the kernel refuses the value {value!r}: {error.strerror}"
                raise StepFailed(self.step, text, error.errno or 0, "InvalidArgument") from error
            finally:
                os.close(fd)

    def _open_terminal(self, root: Root) -> None:
        master, slave, number = terminal.open_pair(lambda flags: root.open("/dev/pts/ptmx", flags))
        console = root.open(f"/dev/pts/{number}")
        tree = sys_mount.open_tree("", directory_fd=console)
        root.attach(tree, "/dev/console")
        os.close(tree)
        os.close(console)
        self._take_terminal(master, slave)

    def _take_terminal(self, master: int, slave: int) -> None:
        rows, columns = self.plan.streams.rows, self.plan.streams.columns
        if rows and columns:
            terminal.resize(master, rows, columns)
        self.channel.send(Message.CONSOLE, master, slave)
        os.close(master)
        self.stdio = (slave, slave, slave)

    def _connect_stdio(self) -> None:
        if self.stdio is None:
            return
        for target, fd in enumerate(self.stdio):
            os.dup2(fd, target)
        if self.plan.streams.tty:
            terminal.make_controlling(0)

    # --- an exec ---

    def _enter_container(self) -> None:
        target = self.plan.target
        if target is None:
            raise StepFailed("plan", "neither a root nor a container to enter", 0, "SystemFailure")
        self.channel.expect(Message.OUTSIDE_READY)
        if self.cgroup.version == 1:
            self._at("cgroup", self.cgroup.join)
        self.step = "namespaces of the container"
        flags = _EXEC_NAMESPACES
        self.own_user_namespace = not namespaces.same(target.pid, "user")
        if self.own_user_namespace:  # nobody may join the one that he is in
            flags |= namespaces.CLONE_NEWUSER
        root = os.open(f"/proc/{target.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        namespaces.setns(self.target_fd, flags)
        if self.own_user_namespace:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        os.fchdir(root)
        os.chroot(".")
        os.close(root)
        if self.plan.streams.tty:
            self.step = "terminal"
            master, slave, _ = terminal.open_pair(lambda flags: os.open("/dev/pts/ptmx", flags))
            self._take_terminal(master, slave)
        self._connect_stdio()
        self._close_engine_files()

    def _close_engine_files(self) -> None:
        """Close everything but stdio, the channel, which moves to descriptor 3, and AppArmor's
        attribute, which moves to 4.

        From here on paths come from the container: the names of its working directory, its
        program and its user files may start with /proc/self/fd, and nothing of the engine's may
        be found there.
        """
        kept = [fd for fd in (self.channel.fileno(), self._apparmor_fd) if fd != -1]
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 5) for fd in kept]
        self.channel.close()  # its number may be one of the new ones
        for place, fd in enumerate(copies, 3):
            os.dup2(fd, place, inheritable=False)
        self.channel = Channel(socket.socket(fileno=3))
        self._apparmor_fd = 4 if len(kept) > 1 else -1
        process.close_from(3 + len(kept))


def _from_os_error(step: str, error: OSError) -> StepFailed:
    number = error.errno or 0
    reason = error.strerror or str(error)
    text = f"{error.filename}: {reason}" if error.filename else reason
    hint = explain(step, number)
    kind = "Unsupported" if hint else "SystemFailure"
    if number in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE) and not hint:
        kind = "ResourceExhausted"
    return StepFailed(step, f"{text} ({hint})" if hint else text, number, kind)


def _read_filter(path: str) -> bytes:
    if not path:
        return b""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _new_keyring() -> None:
    try:
        process.join_session_keyring()
    except OSError as error:
        # A kernel without CONFIG_KEYS has no keyring to leave.
        if error.errno != errno.ENOSYS:
            raise


def _bind_init(root: Root, source: str) -> None:
    tree = sys_mount.open_tree(source)
    sys_mount.mount_setattr(tree, set_flags=sys_mount.MOUNT_ATTR_RDONLY)
    root.attach(tree, "/sbin/docker-init")
    os.close(tree)


def _prepare_directory(path: str) -> None:
    try:
        os.makedirs(path, 0o755, exist_ok=True)
    except OSError as error:
        raise credentials.cannot_enter(path, error) from error


def _make_parent_private(path: str) -> None:
    """pivot_root refuses a root whose parent mount is shared."""
    points = []
    with open("/proc/self/mountinfo") as file:
        for line in file:
            point = line.split(" ")[4]
            if path == point or path.startswith(point.rstrip("/") + "/"):
                points.append(point)
    sys_mount.mount("", max(points, key=len), "", sys_mount.MS_PRIVATE)
