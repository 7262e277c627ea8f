"""Processes: clone3(2), prctl(2), close_range(2), keyctl(2), and what /proc tells."""

from __future__ import annotations

import ctypes
import os

from deskd.kernel.libc import SYSCALLS, check, failure, libc, libc_locked, syscall

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

CLONE_PARENT = 0x00008000
_CLONE_INTO_CGROUP = 0x200000000
_CLOSE_RANGE_CLOEXEC = 4
_KEYCTL_JOIN_SESSION_KEYRING = 1


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


_python = ctypes.pythonapi
_boot_id: list[str] = []
_SIGCHLD = 17


def clone(flags: int, cgroup_fd: int | None = None) -> int:
    """Fork into new namespaces, and with ``cgroup_fd`` into that version 2 cgroup; return the
    child's PID, 0 in the child. With ``CLONE_PARENT`` the child is the caller's parent's. Only
    for a single-threaded process: like ``os.fork`` it runs the interpreter's fork hooks, unlike
    it the C library is not told."""
    signal = 0 if flags & CLONE_PARENT else _SIGCHLD  # with it, the caller's own is taken
    arguments = _CloneArgs(flags=flags, exit_signal=signal)
    if cgroup_fd is not None:
        arguments.flags |= _CLONE_INTO_CGROUP
        arguments.cgroup = cgroup_fd
    _python.PyOS_BeforeFork()
    pid: int = libc_locked.syscall(
        SYSCALLS["clone3"], ctypes.addressof(arguments), ctypes.sizeof(arguments)
    )
    if pid == 0:
        _python.PyOS_AfterFork_Child()
    else:
        error = failure() if pid == -1 else None
        _python.PyOS_AfterFork_Parent()
        if error:
            raise error
    return pid


def prctl(option: int, argument2: int = 0, argument3: int = 0) -> int:
    """prctl(2) with numbers."""
    result: int = libc.prctl(option, argument2, argument3, 0, 0)
    return check(result)


def set_name(name: str) -> None:
    """Set the name that ps shows in brackets and top shows; 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def close_on_exec_from(first_fd: int) -> None:
    """Mark every descriptor from ``first_fd`` on close-on-exec."""
    syscall("close_range", first_fd, 0xFFFFFFFF, _CLOSE_RANGE_CLOEXEC)


def close_from(first_fd: int) -> None:
    """Close every descriptor from ``first_fd`` on."""
    syscall("close_range", first_fd, 0xFFFFFFFF, 0)


def join_session_keyring() -> None:
    """Leave the caller's session keyring for a fresh anonymous one."""
    syscall("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None)


def start_ticks(pid: int) -> int | None:
    """Return when a process started (clock ticks since boot), ``None`` if there is none. With the
    PID it names a process for good."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        text = os.read(fd, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return int(text[text.rindex(b")") + 2 :].split()[19])


def boot_id() -> str:
    """Return the identity of this boot; it is read once."""
    if not _boot_id:
        with open("/proc/sys/kernel/random/boot_id") as file:
            _boot_id.append(file.read().strip())
    return _boot_id[0]


def private_bytes(pid: int) -> int:
    """Return the memory that only this process uses (clean and dirty)."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        lines = file.readlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def signal_pidfd(pidfd: int, number: int) -> None:
    """Send a signal to the process of a pidfd; nothing happens where it has ended."""
    import signal

    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return


def status_code(status: int) -> int:
    """Turn a wait status into Docker's exit code: 128 + signal for a killed process."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code
