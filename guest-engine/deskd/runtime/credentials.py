"""The last steps before a program runs: limits, identity, capabilities, seccomp, execve.

The order matters: whatever needs a privilege comes before it is given up. Runs in the child,
inside the container's root.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from typing import NoReturn

from deskd.kernel import apparmor, capabilities, process, seccomp
from deskd.kernel.capability_names import NUMBERS
from deskd.record import Record
from deskd.runtime.handshake import StepFailed
from deskd.runtime.identity import Identity, LookupFailed, look_up
from deskd.runtime.plan import ProcessSpec, Rlimit

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)


class Prepared(Record):
    """A program ready to be executed."""

    path: str
    argv: list[str]
    env: dict[str, str]
    capability_mask: int
    full_mask: int
    filter: bytes
    no_new_privileges: bool
    apparmor: str


def prepare(
    spec: ProcessSpec,
    seccomp_filter: bytes,
    *,
    make_directory: bool = False,
    own_user_namespace: bool = False,
) -> Prepared:
    """Take on limits, directory and identity; find the program. ``make_directory``: a missing
    working directory is made; ``own_user_namespace``: this process is not in the engine's.
    Raises ``StepFailed``."""
    try:
        identity = look_up(spec.user, spec.extra_groups)
    except LookupFailed as error:
        raise StepFailed("user", str(error), errno.EINVAL, "InvalidArgument") from error
    env = dict(item.partition("=")[::2] for item in spec.env)
    env.setdefault("HOME", identity.home)
    _enter_directory(spec.cwd, make=make_directory)
    _set_rlimits(spec.rlimits)
    wanted, present = _capability_masks(spec, own_user_namespace=own_user_namespace)
    capabilities.limit_bounding_set(wanted, present)
    try:
        _take_identity(identity, present)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        text = (
            f"the user {identity.uid} or one of the groups {identity.gid}, {identity.groups} is"
            " not among the IDs of the container's user namespace; use lower ones"
        )
        raise StepFailed("user", text, errno.EINVAL, "InvalidArgument") from error
    os.umask(spec.umask)
    path = find_program(spec.argv[0], env.get("PATH", ""))
    return Prepared(
        path,
        list(spec.argv),
        env,
        wanted & present,
        present,
        seccomp_filter,
        spec.no_new_privileges,
        spec.apparmor,
    )


def execute(program: Prepared, apparmor_attribute: int) -> NoReturn:
    """Confine this process for good and become the program. Raises ``StepFailed``.

    Its signals are those that ``reset_signals`` left, but for what Python and the launcher do.
    """
    _restore_changed_signals()
    if program.apparmor:
        _choose_profile(apparmor_attribute, program.apparmor)
    if program.no_new_privileges:
        process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
    if program.filter and not program.no_new_privileges:
        seccomp.load(program.filter)
    capabilities.capset(program.capability_mask, program.capability_mask, 0)
    if program.filter and program.no_new_privileges:
        seccomp.load(program.filter)
    try:
        os.execve(program.path, program.argv, program.env)
    except OSError as error:
        number = error.errno or errno.EINVAL
        text = os.strerror(number).lower()
        code = 127 if number == errno.ENOENT else 126
        name = program.argv[0]
        raise StepFailed("exec", f'exec: "{name}": {text}', number, "StartFailed", code) from error


def _choose_profile(attribute: int, profile: str) -> None:
    try:
        apparmor.change_on_exec(attribute, profile)
    except OSError as error:
        number = error.errno or errno.EINVAL
        text = (
            "unable to apply apparmor profile: apparmor failed to apply profile: write"
            f" /proc/self/attr/apparmor/exec: {os.strerror(number).lower()}"
        )
        if number == errno.ENOENT:
            text += f"; load the profile {profile} on the engine's machine first"
        code = 127 if number == errno.ENOENT else 126
        raise StepFailed("apparmor", text, number, "StartFailed", code) from error


def find_program(name: str, search_path: str) -> str:
    """Find the file to execute as execvp(3) does, with Docker's texts where it cannot be.

    Raises ``StepFailed``.
    """
    if "/" in name:
        reason = _not_executable(name)
        if reason:
            code = 127 if reason.endswith("no such file or directory") else 126
            raise StepFailed("exec", f'exec: "{name}": {reason}', 0, "StartFailed", code)
        return name
    denied = False
    for directory in search_path.split(":"):
        path = f"{directory or '.'}/{name}"
        reason = _not_executable(path)
        if not reason:
            return path
        denied = denied or reason == "permission denied"
    if denied:
        raise StepFailed("exec", f'exec: "{name}": permission denied', 0, "StartFailed", 126)
    text = f'exec: "{name}": executable file not found in $PATH'
    raise StepFailed("exec", text, errno.ENOENT, "StartFailed", 127)


def _not_executable(path: str) -> str:
    try:
        info = os.stat(path)
    except PermissionError:
        return "permission denied"
    except OSError as error:
        return f"stat {path}: {os.strerror(error.errno or errno.EINVAL).lower()}"
    if stat.S_ISDIR(info.st_mode):
        return "is a directory: permission denied"
    return "" if info.st_mode & 0o111 else "permission denied"


def _enter_directory(path: str, *, make: bool) -> None:
    try:
        os.chdir(path)
    except FileNotFoundError as missing:
        if not make:
            raise cannot_enter(path, missing) from missing
        try:
            os.makedirs(path, 0o755)
            os.chdir(path)
        except OSError as error:
            raise cannot_enter(path, error) from error
    except OSError as error:
        raise cannot_enter(path, error) from error
    if not os.getcwd().startswith("/"):
        # A directory that is not below the root: somebody has smuggled in a descriptor.
        raise StepFailed(
            "cwd", f"working directory {path} is outside the container", errno.EPERM, "Forbidden"
        )


def cannot_enter(path: str, error: OSError) -> StepFailed:
    """Say why a program's working directory cannot be used."""
    number = error.errno or errno.EINVAL
    text = f'chdir to cwd ("{path}"): {os.strerror(number).lower()}'
    return StepFailed("cwd", text, number, "StartFailed", 126)


def _set_rlimits(limits: tuple[Rlimit, ...]) -> None:
    for limit in limits:
        soft, hard = limit.soft, limit.hard
        try:
            resource.setrlimit(limit.resource, (soft, hard))
        except (ValueError, PermissionError, OSError) as error:
            allowed = resource.getrlimit(limit.resource)[1]
            if limit.explicit:
                raise StepFailed(
                    "ulimit",
                    f"ulimit {limit.name}={soft}:{hard} is above the engine's own hard limit"
                    f" {allowed}; raise the engine's limit or ask for less",
                    errno.EPERM,
                    "Forbidden",
                ) from error
            resource.setrlimit(limit.resource, (min(soft, allowed), allowed))


def _capability_masks(spec: ProcessSpec, *, own_user_namespace: bool) -> tuple[int, int]:
    if own_user_namespace:  # whose members begin with all
        present = capabilities.bounding_set()
    else:
        present = capabilities.inherited_bounding_set()
    missing = [name for name in spec.required_capabilities if not present >> NUMBERS[name] & 1]
    if missing:
        raise StepFailed(
            "capabilities",
            f"the engine's machine does not grant {', '.join(missing)}, asked for with --cap-add",
            errno.EPERM,
            "Unsupported",
        )
    return capabilities.mask(spec.capabilities), present


def _take_identity(identity: Identity, present: int) -> None:
    for fd in (0, 1, 2):
        info = os.fstat(fd)
        if info.st_uid != identity.uid and not (
            stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(1, 3)
        ):
            os.fchown(fd, identity.uid, -1)
    # Identity changes drop capabilities that the seccomp filter's load still needs.
    effective = present & capabilities.permitted_set()
    process.prctl(process.PR_SET_KEEPCAPS, 1)
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    if identity.uid != 0:
        capabilities.capset(effective, effective, 0)
    process.prctl(process.PR_SET_PDEATHSIG, signal.SIGKILL)


def reset_signals() -> None:
    """Give every signal its default, whatever this process was started with; what it forks
    starts from there."""
    for number in range(1, signal.NSIG):
        if number in (signal.SIGKILL, signal.SIGSTOP) or 31 < number < signal.SIGRTMIN:
            continue
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def ignore_signals() -> None:
    """Let this process and what it forks live through what a terminal and a pipe send."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)


def _restore_changed_signals() -> None:
    for number in _IGNORED:
        signal.signal(number, signal.SIG_DFL)
