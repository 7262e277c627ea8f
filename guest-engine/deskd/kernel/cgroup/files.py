"""Reading and writing the small files of a cgroup."""

from __future__ import annotations

import errno
import os
import time

from deskd.errors import InvalidArgument, SystemFailure, Unsupported

_OPTIONS = {
    "memory": "CONFIG_MEMCG",
    "cpu": "CONFIG_FAIR_GROUP_SCHED and CONFIG_CFS_BANDWIDTH",
    "cpuset": "CONFIG_CPUSETS",
    "pids": "CONFIG_CGROUP_PIDS",
    "blkio": "CONFIG_BLK_CGROUP and CONFIG_BLK_DEV_THROTTLING",
    "io": "CONFIG_BLK_CGROUP and CONFIG_BLK_DEV_THROTTLING",
    "devices": "CONFIG_CGROUP_DEVICE",
    "freezer": "CONFIG_CGROUP_FREEZER",
}


def missing(controller: str, purpose: str) -> Unsupported:
    """Make the error of a controller that this machine does not have."""
    option = _OPTIONS.get(controller, "CONFIG_CGROUPS")
    return Unsupported(
        f"{purpose} needs the cgroup controller {controller!r}, which this machine does not offer:"
        f" it needs a kernel with {option} and the controller switched on"
    )


def read(path: str) -> str:
    """Return a file's text without the last newline; ``""`` where there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
            return ""
        raise
    finally:
        os.close(fd)
    return b"".join(parts).decode().rstrip("\n")


def read_number(path: str, default: int = 0) -> int:
    """Return a file's number; ``max`` and a missing file give ``default``."""
    text = read(path)
    return int(text) if text.lstrip("-").isdigit() else default


def read_pairs(path: str) -> dict[str, int]:
    """Return the numbers of a file of ``name number`` lines."""
    pairs = {}
    for line in read(path).splitlines():
        name, _, value = line.partition(" ")
        if value.strip().lstrip("-").isdigit():
            pairs[name] = int(value)
    return pairs


def write(path: str, value: str) -> None:
    """Write one value."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def write_limit(directory: str, name: str, value: str, purpose: str) -> None:
    """Write a limit. Raises, with the purpose, ``Unsupported`` where the machine cannot do it,
    ``InvalidArgument`` for a value that makes no sense to the kernel, else ``SystemFailure``."""
    try:
        write(f"{directory}/{name}", value)
    except FileNotFoundError:
        raise missing(name.partition(".")[0], purpose) from None
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise Unsupported(
                f"{purpose}: the device's I/O scheduler does not support it (it needs BFQ)"
            ) from error
        if error.errno in (errno.EINVAL, errno.ERANGE):
            raise InvalidArgument(f"{purpose}: the kernel refused {value!r} for {name}") from error
        raise SystemFailure(
            f"{purpose}: the kernel refused {value!r} for {name}: {error.strerror}"
        ) from error


def make_directory(path: str) -> bool:
    """Make a cgroup; say whether it is new."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return False
    return True


def remove_tree(path: str, *, timeout_s: float = 2.0) -> None:
    """Remove a cgroup and those below it. Killed processes may take a moment to leave it.

    Raises ``SystemFailure`` where it stays busy.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            if time.monotonic() > deadline:
                raise SystemFailure(f"cgroup {path} still has processes in it") from error
            _remove_children(path)
            time.sleep(0.002)
        else:
            return


def _remove_children(path: str) -> None:
    try:
        names = [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for name in names:
        remove_tree(name, timeout_s=0.2)
