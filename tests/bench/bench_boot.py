#!/usr/bin/env python3
"""Boots the guest image again and again and prints where the time goes, stage by stage.

    python -m tests.bench.bench_boot [--image build/guest] [--boots 20] [--fresh] [--limit-s 6]

Each boot runs from QEMU's start to the engine's first answer through SSH, under software
emulation with two processors, started as Desk starts it. "ready" is when the engine serves every
request, as `desk up` waits for it; "processor" is the time that QEMU's threads took together.
Exits 1 where a boot does not answer or is above the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from desk.machine.accelerator import qemu_version
from desk.machine.drivers.qemu_memory import host_memory_mib
from desk.machine.images import host_architecture
from desk.machine.model import MachineSpec
from desk.machine.qemu_command import BootFiles, HostFacts, binary_name, machine_command

PROJECT = Path(__file__).resolve().parent.parent.parent
STAGES = ("firmware", "kernel", "initramfs", "userspace", "sshd", "engine", "first answer")
"""Each is the time spent in it, but sshd, engine and ready: seconds after userspace began."""
BOOT_LIMIT_S = 60.0
REQUEST = "GET /_ping HTTP/1.0\r\n\r\n"


class Bench:
    """One machine's files and the way to boot it; ``fresh`` boots begin with an empty data disk."""

    def __init__(self, image: Path, scratch: Path, *, accelerator: str, memory_mib: int) -> None:
        self.image = image
        self.scratch = scratch
        self.manifest = json.loads((image / "manifest.json").read_text("utf-8"))
        self.accelerator = accelerator
        self.memory_mib = memory_mib
        binary = binary_name(self.manifest["arch"])
        version = qemu_version(binary)
        self.host = HostFacts(sys.platform, host_architecture(), binary, version, host_memory_mib())
        self.key = scratch / "key"
        self.console = scratch / "console.log"
        self.data = scratch / "data.img"
        for key in (self.key, scratch / "host-key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True
            )
        self.write_seed()

    def write_seed(self) -> None:
        """Write the seed disk as docs/architecture.md describes it."""
        machine = {"name": "bench", "hostname": "bench", "network": "qemu-user"}
        members = {
            "machine.json": json.dumps(machine, indent=2).encode() + b"\n",
            "ssh_host_ed25519_key": (self.scratch / "host-key").read_bytes(),
            "ssh_host_ed25519_key.pub": (self.scratch / "host-key.pub").read_bytes(),
            "authorized_keys": (self.scratch / "key.pub").read_bytes(),
            "daemon.json": b"{}\n",
        }
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o600
                archive.addfile(entry, io.BytesIO(content))
        data = buffer.getvalue()
        (self.scratch / "seed.img").write_bytes(data + bytes(-len(data) % 512))

    def empty_data_disk(self) -> None:
        with self.data.open("wb") as file:
            file.truncate(20 << 30)

    def command(self, port: int) -> list[str]:
        """Return QEMU's arguments: the driver's."""
        files = BootFiles(
            kernel=self.image / self.manifest["kernel"]["file"],
            initramfs=self.image / self.manifest["initramfs"]["file"],
            console_log=self.console,
            root=self.image / self.manifest["root"]["file"],
            data=self.data,
            seed=self.scratch / "seed.img",
        )
        spec = MachineSpec("bench", memory_mib=self.memory_mib)
        return machine_command(
            spec, self.host, self.manifest["arch"], self.accelerator, files,
            cmdline=self.manifest["cmdline"], ssh_port=port,
        )  # fmt: skip

    def ssh(self, port: int, command: str, *, limit_s: float, stdin: str = "") -> str:
        """Run a command in the guest; return its output, empty where it fails."""
        argv = self._ssh_command(port)
        try:
            done = subprocess.run(
                [*argv, command], input=stdin, capture_output=True, text=True,
                timeout=limit_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout

    def _ssh_command(self, port: int, *more: str) -> list[str]:
        argv = ["ssh", "-F", "none", "-i", str(self.key), "-p", str(port)]
        for option in (
            "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR",
            "BatchMode=yes", "ConnectTimeout=20", "KexAlgorithms=curve25519-sha256",
            f"ControlPath={self.scratch / 'ssh'}",
        ):  # fmt: skip
            argv += ["-o", option]
        return [*argv, *more, "root@127.0.0.1"]

    @contextlib.contextmanager
    def running(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Boot; give the SSH port and the stages once SSH and the engine listen.

        The stages have two more: ``began`` and ``seen``, by this computer's clock, when QEMU began
        and when the first stage was read. Raises ``TimeoutError`` with the console's end.
        """
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
        self.console.write_bytes(b"")
        self.port = port
        self.agent: subprocess.Popen[bytes] | None = None
        began = time.monotonic()
        self.qemu = subprocess.Popen(self.command(port), stdin=subprocess.DEVNULL)
        try:
            stages, seen = self._watch(self.qemu, began)
            yield port, {**stages, "began": began, "seen": began + seen}
        finally:
            for process in (self.qemu, self.agent):
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait()
            (self.scratch / "ssh").unlink(missing_ok=True)

    def power_off(self, port: int) -> None:
        """Ask for an orderly end and wait for it; raises ``TimeoutError``."""
        self.ssh(port, "/usr/sbin/poweroff", limit_s=20)
        try:
            self.qemu.wait(40)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(self._last_words("the guest does not power off")) from error

    def boot(self) -> dict[str, float]:
        """Boot once; return the seconds of each stage. Raises ``TimeoutError`` with the console."""
        with self.running() as (port, stages):
            began = stages["began"]
            # The connection is on its way; asking before it stands would make a second one.
            while not (self.scratch / "ssh").exists() and time.monotonic() - began < BOOT_LIMIT_S:
                time.sleep(0.01)
            while time.monotonic() - began < BOOT_LIMIT_S:
                if " 200" in self.ssh(port, "deskd dial-stdio", limit_s=20, stdin=REQUEST):
                    break
            else:
                raise TimeoutError(self._last_words("no answer through SSH"))
            answered_s = time.monotonic() - began
            used_s = processor_time_s(self.qemu.pid)
            while "ready" not in (now := self._stages()):
                if time.monotonic() - began > BOOT_LIMIT_S:
                    raise TimeoutError(self._last_words("the engine does not serve"))
                time.sleep(0.05)
            self.power_off(port)
        firmware_s = max(0.0, stages["seen"] - began - stages["initramfs"])
        return {
            "firmware": firmware_s,
            "kernel": stages["initramfs"],
            "initramfs": stages["userspace"] - stages["initramfs"],
            "userspace": min(stages["sshd"], stages["engine"]) - stages["userspace"],
            "sshd": stages["sshd"] - stages["userspace"],
            "engine": stages["engine"] - stages["userspace"],
            "first answer": answered_s - firmware_s - max(stages["sshd"], stages["engine"]),
            "ready": now["ready"] - stages["userspace"],
            "all": answered_s,
            "processor": used_s,
            "panics": self.console.read_text("utf-8", "replace").count("Kernel panic"),
        }

    def _watch(self, qemu: subprocess.Popen[bytes], began: float) -> tuple[dict[str, float], float]:
        """Follow the console until the engine answers; return stages, and when the first came."""
        first_s = 0.0
        while not {"sshd", "engine"} <= (stages := self._stages()).keys():
            if stages and not first_s:
                first_s = time.monotonic() - began
            if "sshd" in stages and self.agent is None:
                # As Desk's agent does: one connection, as soon as there is an sshd.
                self.agent = subprocess.Popen(
                    self._ssh_command(self.port, "-M", "-N"), stdin=subprocess.DEVNULL
                )
            if qemu.poll() is not None:
                raise TimeoutError(self._last_words(f"QEMU ended with status {qemu.returncode}"))
            if time.monotonic() - began > BOOT_LIMIT_S:
                raise TimeoutError(self._last_words(f"only {', '.join(stages) or 'nothing'} came"))
            time.sleep(0.01)
        return stages, first_s

    def _stages(self) -> dict[str, float]:
        """Read the stages so far off the console, in seconds of the guest's clock.

        A guest that panics restarts by itself, as under Desk; the last start counts.
        """
        text = self.console.read_text("utf-8", "replace").rpartition("Kernel panic")[2]
        lines = (line.split() for line in text.splitlines())
        return {w[1]: float(w[2]) for w in lines if len(w) == 3 and w[0] == "DESK-STAGE"}

    def _last_words(self, what: str) -> str:
        lines = self.console.read_text("utf-8", "replace").splitlines()
        return f"{what}; the console ended with:\n  " + "\n  ".join(lines[-12:])


def processor_time_s(pid: int) -> float:
    """Return the processor time of a process so far: steadier than the clock on a busy host."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the guest's boot, stage by stage.")
    parser.add_argument("--image", type=Path, default=PROJECT / "build" / "guest")
    parser.add_argument("--boots", type=int, default=20)
    parser.add_argument("--fresh", action="store_true", help="an empty data disk for every boot")
    parser.add_argument("--accelerator", choices=("tcg", "kvm"), default="tcg")
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB")
    parser.add_argument("--limit-s", type=float, default=6.0, help="for each boot")
    arguments = parser.parse_args()
    times: list[dict[str, float]] = []
    failures = 0
    with tempfile.TemporaryDirectory(prefix="desk-boot-") as scratch:
        bench = Bench(arguments.image.absolute(), Path(scratch),
                      accelerator=arguments.accelerator, memory_mib=arguments.memory)  # fmt: skip
        bench.empty_data_disk()
        for number in range(1, arguments.boots + 1):
            if arguments.fresh:
                bench.empty_data_disk()
            try:
                result = bench.boot()
            except TimeoutError as error:
                failures += 1
                print(f"boot {number}: {error}", flush=True)
                continue
            times.append(result)
            print(f"boot {number}: " + ", ".join(f"{k} {v:.2f}" for k, v in result.items()),
                  flush=True)  # fmt: skip
    panics = sum(result["panics"] for result in times)
    print(f"\n{len(times)} of {arguments.boots} boots answered, after {panics:.0f} panics")
    if not times:
        return 1
    print(f"{'stage':14} {'median s':>9} {'slowest s':>9}")
    for stage in (*STAGES, "ready", "all", "processor"):
        values = [result[stage] for result in times]
        print(f"{stage:14} {statistics.median(values):9.2f} {max(values):9.2f}")
    late = sum(result["all"] > arguments.limit_s for result in times)
    print(f"{len(times) - late} of {arguments.boots} boots within {arguments.limit_s:g} s")
    return int(failures + late > 0)


if __name__ == "__main__":
    sys.exit(main())
