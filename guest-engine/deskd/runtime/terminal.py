"""Pseudo-terminals of containers: made from the container's own devpts, used by the monitor."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import termios
from collections.abc import Callable

_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430
_TIOCGPTPEER = 0x5441
_PTMX = os.makedev(5, 2)


def open_pair(open_ptmx: Callable[[int], int]) -> tuple[int, int, int]:
    """Return master, slave and the number N of /dev/pts/N. ``open_ptmx`` opens the container's
    /dev/pts/ptmx with the flags it is given; what it opens is checked to be that device."""
    master = open_ptmx(os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    info = os.fstat(master)
    if not stat.S_ISCHR(info.st_mode) or info.st_rdev != _PTMX:
        os.close(master)
        raise OSError(errno.ENODEV, "/dev/pts/ptmx of the container is not the terminal device")
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("=i", 0))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    number: int = struct.unpack("=i", fcntl.ioctl(master, _TIOCGPTN, b"\0" * 4))[0]
    return master, slave, number


def resize(master: int, rows: int, columns: int) -> None:
    """Set the window size; the kernel tells the program with SIGWINCH."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("=HHHH", rows, columns, 0, 0))


def make_controlling(slave: int) -> None:
    """Make the terminal this session leader's own."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
