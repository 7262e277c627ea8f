"""Names of Unix sockets, however deep the exec root lies. The launcher's side imports this."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_NAME_BYTES = 107  # unix(7): sun_path has 108 with the final zero


@contextmanager
def short_name(path: str) -> Iterator[str]:
    """Yield a name for the socket ``path`` that fits into an address, valid within the block.

    A longer one is named through a descriptor of its directory.
    """
    if len(os.fsencode(path)) <= LONGEST_NAME_BYTES:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
