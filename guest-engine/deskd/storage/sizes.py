"""How much of the disk a tree takes."""

from __future__ import annotations

import os
import stat


def size_bytes(path: str) -> int:
    """Sum the sizes of what is below ``path``, directories apart; each hard-linked file counts
    once, a symbolic link as many bytes as its target's name has (Docker's measure)."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for directory, subdirectories, names in os.walk(path):
        for name in (*subdirectories, *names):
            try:
                info = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(info.st_mode) and (info.st_dev, info.st_ino) not in seen:
                if info.st_nlink > 1:
                    seen.add((info.st_dev, info.st_ino))
                total += info.st_size
    return total
