"""A libvirt of the test's own: daemon, networks, pool and VMs live in namespaces and end with it.

``entered`` moves the calling thread into the network and mount namespaces, so that Vagrant finds
the daemon where it always is and the guests' addresses can be reached; what it starts comes along.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_CLONE_FS = 0x00000200
_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_SOCKET = Path("/run/libvirt/libvirt-sock")
_START_S = 60.0

# With the PID namespace's first process end the daemon, dnsmasq and every VM. That process is a
# shell in `wait`, which reaps orphans: libvirtd takes a VM's zombie for a VM that does not die.
# Only there is /proc another one; who enters the outer mount namespace keeps the host's.
_SCRIPT = """
set -e
mount --make-rprivate /
ip link set lo up
cp -a /etc/libvirt "$1/etc"
for directory in /run /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
  mount -t tmpfs -o mode=755 tmpfs "$directory"
done
mkdir -p /run/libvirt /run/lock /var/lib/libvirt/images /var/log/libvirt/qemu
cp -a "$1/etc/." /etc/libvirt
cat >>/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
remember_owner = 0
END
echo ready
exec unshare --pid --fork --kill-child --mount --mount-proc sh -c '/usr/sbin/libvirtd & wait'
"""


class PrivateLibvirt:
    """Use as a context manager; ``directory`` takes its log."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "libvirtd.log"
        self._scratch = directory
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PrivateLibvirt:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--net", "--mount", "sh", "-c", _SCRIPT, "sh", str(self._scratch)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", self._log.read_text()
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Run the block, and everything that it starts, inside; for the calling thread only."""
        assert self._process is not None
        libc = ctypes.CDLL(None, use_errno=True)
        kinds = {"net": _CLONE_NEWNET, "mnt": _CLONE_NEWNS}
        outside = {kind: os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY) for kind in kinds}
        directory = Path.cwd()
        # A thread may change its mount namespace only with a root and directory of its own.
        _check(libc.unshare(_CLONE_FS))
        try:
            for kind, flag in kinds.items():
                inside = os.open(f"/proc/{self._process.pid}/ns/{kind}", os.O_RDONLY)
                try:
                    _check(libc.setns(inside, flag))
                finally:
                    os.close(inside)
            os.chdir(directory)
            self._wait()
            yield
        finally:
            for kind, flag in kinds.items():
                _check(libc.setns(outside[kind], flag))
                os.close(outside[kind])
            os.chdir(directory)

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while not _SOCKET.exists():
            assert time.monotonic() < deadline, self._log.read_text()
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.05)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
