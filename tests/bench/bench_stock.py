"""What a machine's start and restart take beside a stock Debian guest with systemd and docker.io.

    python -m tests.bench.bench_stock [--image build/guest] [--boots 50] [--stock-boots 5]

Run it as root: it makes the stock guest of Debian trixie's packages (kernel, systemd, sshd,
docker.io, nothing tuned), once, in build/stock. Both boot with the same QEMU, the arguments that
Desk gives its machines, under software emulation, in turn. Desk's time is from `desk machine start`
(or `restart`) to the first answer of its engine to that question, through the agent; the stock
guest's from the start of QEMU (or `systemctl reboot`) to the answer of `docker version` in it.
Exits 1 where one of Desk's is above a fifth of the stock guest's median, or does not answer.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from desk.engine.client import EngineClient
from desk.engine.transport import UnixTransport
from desk.errors import DeskError
from desk.machine.accelerator import qemu_version
from desk.machine.drivers.qemu_memory import host_memory_mib
from desk.machine.images import host_architecture
from desk.machine.model import MachineSpec
from desk.machine.qemu_command import BootFiles, HostFacts, binary_name, machine_command
from tests.cli_process import DESK
from tests.laptop import Laptop, laptop_with_machine

PROJECT = Path(__file__).resolve().parent.parent.parent
STOCK = PROJECT / "build" / "stock"
MEMORY_MIB = 1024
DISK_BYTES = 4 << 30
PATIENCE_S = 600.0
ANSWER_S = 2.0
REST_S = 3.0  # a machine that is restarted has done with its start
MOST_PART = 0.2
PACKAGES = (
    "linux-image-amd64", "systemd-sysv", "udev", "dbus", "openssh-server",
    "docker.io", "docker-cli", "iptables", "ca-certificates",
)  # fmt: skip
NETWORK = "[Match]\nName=en*\n\n[Network]\nDHCP=yes\n"
CMDLINE = "root=/dev/disk/by-id/virtio-desk-data rw console=ttyS0"


def make_stock() -> None:
    """Make the stock guest's kernel, initramfs and disk, where they are not there yet."""
    if (STOCK / "disk.img").exists():
        return
    STOCK.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(STOCK / "key")],
        check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="desk-stock-") as scratch:
        root = Path(scratch, "root")
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}",
             "trixie", str(root), "http://deb.debian.org/debian"],
            check=True,
        )  # fmt: skip
        (root / "etc/systemd/network/80-dhcp.network").write_text(NETWORK)
        (root / "etc/hostname").write_text("stock\n")
        (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        shutil.copy(STOCK / "key.pub", root / "root/.ssh/authorized_keys")
        subprocess.run(
            ["chroot", root, "systemctl", "enable", "systemd-networkd"],
            check=True, capture_output=True,
        )  # fmt: skip
        (kernel,) = (root / "boot").glob("vmlinuz-*")
        (initramfs,) = (root / "boot").glob("initrd.img-*")
        shutil.copy(kernel, STOCK / "vmlinuz")
        shutil.copy(initramfs, STOCK / "initrd")
        whole = STOCK / "disk.part"
        with whole.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-d", str(root), str(whole)], check=True)
    whole.rename(STOCK / "disk.img")


class Panicked(Exception):
    """The stock guest's kernel gave up, as it does now and then under QEMU before 8.1, which
    translates code that the kernel is changing; Desk's guest goes round that."""


class Stock:
    """The stock guest, on a copy of its disk that stays over its boots."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._disk = scratch / "disk.img"
        # cp keeps the holes, and shares the blocks where the file system can.
        subprocess.run(
            ["cp", "--sparse=always", "--reflink=auto", STOCK / "disk.img", self._disk], check=True
        )
        self._nothing = scratch / "nothing.img"
        self._nothing.write_bytes(bytes(1 << 20))
        self._console = scratch / "console.log"
        self._port = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start QEMU; the guest powers off at the end."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = int(listener.getsockname()[1])
        self._console.write_bytes(b"")
        qemu = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL)
        try:
            yield
            self._ssh("systemctl poweroff")
            qemu.wait(PATIENCE_S)
        finally:
            if qemu.poll() is None:
                qemu.kill()
                qemu.wait()

    def _command(self) -> list[str]:
        arch = host_architecture()
        binary = binary_name(arch)
        host = HostFacts(sys.platform, arch, binary, qemu_version(binary), host_memory_mib())
        files = BootFiles(
            kernel=STOCK / "vmlinuz", initramfs=STOCK / "initrd", console_log=self._console,
            root=self._nothing, data=self._disk, seed=self._nothing,
        )  # fmt: skip
        spec = MachineSpec("stock", memory_mib=MEMORY_MIB)
        return machine_command(spec, host, arch, "tcg", files, cmdline=CMDLINE, ssh_port=self._port)

    def _ssh(self, command: str) -> str:
        argv = ["ssh", "-F", "none", "-i", str(STOCK / "key"), "-p", str(self._port)]
        for option in (
            "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR",
            "BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=2",
        ):  # fmt: skip
            argv += ["-o", option]
        done = subprocess.run(
            [*argv, "root@127.0.0.1", command],
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        return done.stdout

    def wait_for_answer(self, not_boot: str = "") -> str:
        """Wait until dockerd answers in a boot other than ``not_boot``; return the boot's ID.

        Raises ``Panicked``, and ``TimeoutError`` with the console's end.
        """
        ask = (
            f'read id </proc/sys/kernel/random/boot_id; [ "$id" != "{not_boot}" ] || exit 1;'
            " until docker version >/dev/null 2>&1; do sleep 0.1; done; echo $id"
        )
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if answer := self._ssh(ask).strip():
                return answer
            console = self._console.read_text("utf-8", "replace")
            if "Kernel panic" in console:
                raise Panicked
            time.sleep(0.1)
        lines = console.splitlines()
        raise TimeoutError("the stock guest does not answer:\n  " + "\n  ".join(lines[-12:]))

    def reboot(self) -> None:
        self._ssh("systemctl reboot")


def measure_stock(stock: Stock) -> tuple[float, float]:
    """Return the seconds of a start and of a restart, in which the kernel did not panic."""
    while True:
        started = time.monotonic()
        try:
            with stock.running():
                boot = stock.wait_for_answer()
                start_s = time.monotonic() - started
                time.sleep(REST_S)
                started = time.monotonic()
                stock.reboot()
                stock.wait_for_answer(not_boot=boot)
                restart_s = time.monotonic() - started
            return start_s, restart_s
        except Panicked:
            print("stock: its kernel panicked; once more")


def measure_desk(laptop: Laptop) -> tuple[float, float]:
    """Return the seconds of a start and of a restart; the machine is stopped before and after."""
    times = []
    for verb in ("start", "restart"):
        started = time.monotonic()
        command = subprocess.Popen(
            [DESK, "machine", verb],
            env=laptop.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if verb == "restart":  # the engine of before answers until it is stopped
            _wait_for_answer(laptop, wanted=False)
        _wait_for_answer(laptop, wanted=True)
        times.append(time.monotonic() - started)
        if command.wait(PATIENCE_S) != 0:
            sys.exit(f"desk machine {verb} failed: {laptop.desk('machine', 'status')}")
        time.sleep(REST_S)
    laptop.desk("machine", "stop")
    return times[0], times[1]


def _wait_for_answer(laptop: Laptop, *, wanted: bool) -> None:
    """Wait until the engine tells its version through the agent, or until it does not."""
    socket_path = laptop.home / "machines" / "default" / "engine.sock"
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with EngineClient(UnixTransport(socket_path), timeout_s=ANSWER_S) as client:
                client.system.version()
            answers = True
        except DeskError:
            answers = False
        if answers == wanted:
            return
        time.sleep(0.02)
    sys.exit("the machine's engine does not " + ("answer" if wanted else "end"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, default=PROJECT / "build" / "guest")
    parser.add_argument("--boots", type=int, default=50)
    parser.add_argument("--stock-boots", type=int, default=5)
    arguments = parser.parse_args()
    make_stock()
    stock_times: list[tuple[float, float]] = []
    desk_times: list[tuple[float, float]] = []
    turns = max(1, arguments.boots // arguments.stock_boots)
    with (
        tempfile.TemporaryDirectory(prefix="desk-stock-") as scratch,
        laptop_with_machine(arguments.image.absolute(), memory=f"{MEMORY_MIB}m") as laptop,
    ):
        laptop.desk("machine", "stop")
        stock = Stock(Path(scratch))
        for turn in range(arguments.boots):
            if turn % turns == 0 and len(stock_times) < arguments.stock_boots:
                stock_times.append(measure_stock(stock))
                print(
                    "stock: start {:.1f} s, restart {:.1f} s".format(*stock_times[-1]), flush=True
                )
            desk_times.append(measure_desk(laptop))
            print("desk:  start {:.2f} s, restart {:.2f} s".format(*desk_times[-1]), flush=True)
        laptop.desk("machine", "start")
    late = 0
    print(f"\n{'':8} {'stock, median':>14} {'desk, median':>13} {'slowest':>8} {'ratio':>6}")
    for index, name in enumerate(("start", "restart")):
        theirs = statistics.median(times[index] for times in stock_times)
        ours = [times[index] for times in desk_times]
        median = statistics.median(ours)
        within = sum(value <= MOST_PART * theirs for value in ours)
        late += len(ours) - within
        print(
            f"{name:8} {theirs:12.1f} s {median:11.2f} s {max(ours):6.2f} s {median / theirs:6.3f}"
            f"   {within} of {len(ours)} within a fifth"
        )
    return int(late > 0)


if __name__ == "__main__":
    sys.exit(main())
