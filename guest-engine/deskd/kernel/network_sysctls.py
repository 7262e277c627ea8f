"""Settings of the network namespace that the calling process is in; standard library only.

``/proc/sys/net`` shows each process those of its own namespace, whichever /proc it looks at.
"""

from __future__ import annotations

import os


def write(name: str, value: str) -> None:
    """Set ``net.ipv6.conf.eth0.accept_ra`` or the like. Raises ``OSError`` with the name."""
    try:
        descriptor = os.open(f"/proc/sys/{name.replace('.', '/')}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (the sysctl {name} = {value})") from error
