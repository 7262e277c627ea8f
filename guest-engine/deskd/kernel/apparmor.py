"""AppArmor: the profile that a program gets when it executes. See apparmor(7), aa_change_onexec(2).

A kernel with it lists and takes profiles in securityfs; a process says in its ``attr/exec`` under
which one its next program shall run.
"""

from __future__ import annotations

import functools
import os

from deskd.kernel import mount

DEFAULT_PROFILE = "docker-default"
UNCONFINED = "unconfined"
SOURCE = os.path.join(os.path.dirname(__file__), "apparmor_default.profile")
"""The default profile as apparmor_parser(8) takes it."""
COMPILED = "/usr/share/desk/apparmor_default.policy"
"""The same as the kernel takes it; the guest has it instead of the parser."""
PARSERS = ("/usr/sbin/apparmor_parser", "/sbin/apparmor_parser")

_ENABLED = "/sys/module/apparmor/parameters/enabled"
_SECURITY_FS = "/sys/kernel/security"
_ATTRIBUTES = ("/proc/self/attr/apparmor/exec", "/proc/self/attr/exec")


@functools.cache
def is_enabled() -> bool:
    """Say whether this kernel confines by AppArmor; that does not change while it runs."""
    try:
        with open(_ENABLED, encoding="ascii") as file:
            return file.read(1) == "Y"
    except OSError:
        return False


@functools.cache
def default_profile() -> str:
    """Return the profile of containers that ask for none: ``""`` where there can be none."""
    can_be_loaded = any(map(os.path.exists, (COMPILED, *PARSERS)))
    return DEFAULT_PROFILE if is_enabled() and can_be_loaded else ""


def show_policy() -> None:
    """Make sure that the kernel's list of profiles is there; service managers mount it, a small
    guest does not. Raises ``OSError``."""
    if not os.path.isdir(f"{_SECURITY_FS}/apparmor"):
        flags = mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC
        mount.mount("securityfs", _SECURITY_FS, "securityfs", flags)


def is_loaded(profile: str) -> bool:
    """Say whether the kernel knows a profile. Its directory is named ``PROFILE.NUMBER``."""
    try:
        listed = os.listdir(f"{_SECURITY_FS}/apparmor/policy/profiles")
    except FileNotFoundError:  # not mounted, so nobody has loaded anything
        return False
    return any(name.rpartition(".")[0] == profile for name in listed)


def load(policy: bytes) -> None:
    """Give the kernel compiled profiles; ones that it knows are replaced. Raises ``OSError``."""
    fd = os.open(f"{_SECURITY_FS}/apparmor/.replace", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, policy)  # one call: the kernel takes no policy in pieces
    finally:
        os.close(fd)


def open_attribute() -> int:
    """Open what ``change_on_exec`` writes to, of this process and for it alone. To be done where
    /proc is still the machine's own: in a container something else may be mounted there."""
    for path in _ATTRIBUTES[:-1]:
        try:
            return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
    return os.open(_ATTRIBUTES[-1], os.O_WRONLY | os.O_CLOEXEC)


def change_on_exec(attribute: int, profile: str) -> None:
    """Let the next program of this process run under ``profile``. Raises ``FileNotFoundError``
    where it is not loaded."""
    os.write(attribute, f"exec {profile}".encode())
