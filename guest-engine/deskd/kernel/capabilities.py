"""Capabilities of this process: capset(2), the bounding and ambient sets. See capabilities(7)."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable

from deskd.kernel.capability_names import CAPABILITIES, NUMBERS
from deskd.kernel.libc import syscall
from deskd.kernel.process import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAPBSET_DROP,
    PR_CAPBSET_READ,
    prctl,
)

_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = tuple(
        (f"{name}{word}", ctypes.c_uint32)
        for word in (0, 1)
        for name in ("effective", "permitted", "inheritable")
    )


def mask(names: Iterable[str]) -> int:
    """Return the bit mask of a set of capability names."""
    bits = 0
    for name in names:
        bits |= 1 << NUMBERS[name]
    return bits


def read_mask(field: str, pid: int | str = "self") -> int:
    """Read a set of a process from /proc: ``CapBnd``, ``CapEff``, ``CapPrm`` or ``CapInh``."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return int(line.split()[1], 16)
    raise OSError(f"/proc/{pid}/status has no line {field}")


_inherited: list[int] = []


def remember_bounding_set() -> None:
    """Ask for this process's bounding set once, for its children: they have the same as long as
    they neither drop from it nor enter a user namespace."""
    _inherited[:] = [bounding_set()]


def inherited_bounding_set() -> int:
    """Return what ``remember_bounding_set`` found, else this process's own."""
    return _inherited[0] if _inherited else bounding_set()


def bounding_set() -> int:
    """Return this thread's bounding set, from the kernel: /proc may be a container's own."""
    bits, number = 0, 0
    while True:
        try:
            bits |= prctl(PR_CAPBSET_READ, number) << number
        except OSError as error:
            if error.errno == errno.EINVAL:  # the first number that this kernel does not know
                return bits
            raise
        number += 1


def permitted_set() -> int:
    """Return this thread's permitted set, from the kernel. capget(2)"""
    data = _Data()
    syscall("capget", _Header(_VERSION_3, 0), data)
    bits: int = data.permitted0 | data.permitted1 << 32
    return bits


def names(bits: int) -> list[str]:
    """Return the names in a mask, in the order of their numbers."""
    return [name for number, name in enumerate(CAPABILITIES) if bits >> number & 1]


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for this thread."""
    low, high = 0xFFFFFFFF, 32
    data = _Data(
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> high,
        permitted >> high,
        inheritable >> high,
    )
    syscall("capset", _Header(_VERSION_3, 0), data)


def limit_bounding_set(keep: int, present: int) -> None:
    """Drop everything of ``present`` that is not in ``keep`` from the bounding set."""
    number = 0
    remaining = present & ~keep
    while remaining >> number:
        if remaining >> number & 1:
            prctl(PR_CAPBSET_DROP, number)
        number += 1


def clear_ambient() -> None:
    """Empty the ambient set."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
